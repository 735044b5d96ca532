-- Who is told that a payment succeeded. After its broadcast a payment's header is public, so the request that had it accepted goes first,
-- and a payment that was submitted for its session is told to those alone who know the session's id.
alter table payments
    add column first_asker text,
    add column first_asker_process uuid,
    add column first_request text,
    add constraint payments_first_asker_is_bounded check (octet_length(first_asker) between 1 and 128),
    add constraint payments_first_request_is_bounded check (octet_length(first_request) between 1 and 128),
    add constraint payments_first_right_is_an_askers check (
        first_asker_process is null or first_asker is not null and first_request is not null
    );

comment on column payments.first_asker is 'grants.asked_as of the request that had it accepted; null: accepted without a request to settle';
comment on column payments.first_asker_process is 'process in which that request waits: nobody else is granted while it does; null: its connection or its wait has ended';
comment on column payments.first_request is 'grants.request_id of that request: it alone ends its first right, not an earlier one that was asked under the same id';

alter table grants
    add column asked_as text,
    add constraint grants_asked_as_is_bounded check (octet_length(asked_as) between 1 and 128);

comment on column grants.asked_as is 'X-Request-Id of the caller, or request_id when it sent none; repeated to all who present the payment again; null: written before the column was there';

alter table sessions add column needs_id boolean not null default false;

comment on column sessions.needs_id is 'its payment is granted only to a request with the session''s id, because it was submitted or presented with it';

-- Grants: which request was told that a payment succeeded. That the money moved is another fact, and stands in payments.
create table grants (
    payment_id uuid,
    process_id uuid not null,
    request_id text not null,
    caller text not null,
    granted_at timestamptz not null default now(),
    answered_at timestamptz,
    voided_at timestamptz,
    constraint grants_one_per_payment primary key (payment_id),
    constraint grants_belong_to_a_payment foreign key (payment_id) references payments (id),
    constraint grants_belong_to_a_process foreign key (process_id) references processes (id),
    constraint grants_answered_or_voided check (answered_at is null or voided_at is null)
);

comment on table grants is 'the one success answer of a payment';
comment on column grants.process_id is 'process that gives the answer; once it is dead, an unanswered grant is void';
comment on column grants.request_id is 'request that was told success';
comment on column grants.caller is 'network address of the caller';
comment on column grants.answered_at is 'the answer was flushed to the socket';
comment on column grants.voided_at is 'the connection broke first: the next presenter gets the grant';

-- A verify of a known payment holds a short lease, so that parallel copies of one header do not run a handler twice.
create table verify_leases (
    payment_id uuid,
    lease_until timestamptz not null,
    constraint verify_leases_one_per_payment primary key (payment_id),
    constraint verify_leases_belong_to_a_payment foreign key (payment_id) references payments (id)
);

comment on table verify_leases is 'short leases of /verify, ended by the next /settle of the payment';
comment on column verify_leases.lease_until is 'others may verify the payment after this time';

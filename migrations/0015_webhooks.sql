-- Receivers of events, and what is to be sent to them. A receiver has its own place in the feed of events, so nothing is written for it
-- where a payment changes.

create table webhook_receivers (
    id uuid,
    url text not null,
    types text not null,
    payee bytea,
    secret bytea not null,
    may_be_private boolean not null,
    position_xact xid8 not null,
    position_id bigint not null,
    created_at timestamptz not null default now(),
    constraint webhook_receivers_pkey primary key (id),
    constraint webhook_receivers_url_is_http check (url ~ '^https?://' and octet_length(url) <= 2048),
    constraint webhook_receivers_types_are_short check (octet_length(types) between 1 and 1024),
    constraint webhook_receivers_payee_has_20_bytes check (octet_length(payee) = 20),
    constraint webhook_receivers_secret_has_32_bytes check (octet_length(secret) = 32)
);

comment on table webhook_receivers is 'URLs that events are sent to';
comment on column webhook_receivers.types is 'names and groups of types, separated by commas';
comment on column webhook_receivers.payee is 'only payments to this payee; null: everything';
comment on column webhook_receivers.secret is 'key of the signatures; shown once, when the receiver is added';
comment on column webhook_receivers.may_be_private is 'its host may have an address that is not public';
comment on column webhook_receivers.position_xact is 'with position_id: the place in the feed up to which deliveries were written';

create table webhook_deliveries (
    id bigint generated always as identity,
    receiver_id uuid not null,
    message_id text not null,
    payment_id uuid not null,
    body text not null,
    state text not null default 'waiting',
    tries integer not null default 0,
    next_try_at timestamptz not null default now(),
    first_tried_at timestamptz,
    created_at timestamptz not null default now(),
    ended_at timestamptz,
    status integer,
    problem text,
    constraint webhook_deliveries_pkey primary key (id),
    constraint webhook_deliveries_one_per_message unique (receiver_id, message_id),
    constraint webhook_deliveries_of_a_receiver foreign key (receiver_id) references webhook_receivers (id) on delete cascade,
    constraint webhook_deliveries_state_is_known check (state in ('waiting', 'delivered', 'dead')),
    constraint webhook_deliveries_end_with_a_time check ((state = 'waiting') = (ended_at is null))
);

comment on table webhook_deliveries is 'what is sent to receivers, and what became of it';
comment on column webhook_deliveries.message_id is 'id of the event or test, as the receiver sees it';
comment on column webhook_deliveries.payment_id is 'those of one payment are sent one after the other; the nil UUID: none';
comment on column webhook_deliveries.state is 'dead: given up after three days';
comment on column webhook_deliveries.next_try_at is 'a process that sends it moves this, so that no other does for a while';
comment on column webhook_deliveries.status is 'HTTP status of the last try';

create index webhook_deliveries_waiting on webhook_deliveries (receiver_id, payment_id, id) where state = 'waiting';
create index webhook_deliveries_due on webhook_deliveries (receiver_id, next_try_at) where state = 'waiting';

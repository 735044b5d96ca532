-- The history, from 100,000 payments on: newest first is the only order, so every index that finds payments ends with it, and
-- a page is read from where it begins. Times are bounds as often as filters, so the order is by time of acceptance, then by id.
drop index payments_by_payer;
drop index payments_by_payee;
drop index payments_by_state;

create index payments_by_time on payments (created_at, id) include (network, asset, payer, payee, amount, state);
create index payments_by_payer on payments (payer, created_at, id);
create index payments_by_payee on payments (payee, created_at, id);
create index payments_by_state on payments (state, created_at, id);
create index payments_by_asset on payments (asset, network, created_at, id);
create index payments_by_amount on payments (amount, created_at, id);
create index payments_by_transaction on payments (transaction_hash) where transaction_hash is not null;
-- By hash, because an index refuses long texts.
create index payments_by_resource on payments (hashtextextended(resource, 0), created_at, id) where resource is not null;

-- Sessions are looked at from their payments and the other way round, and a buyer may use one reference for all it does.
drop index sessions_by_client_reference;
create index sessions_by_client_reference on sessions (client_reference, payment_id) include (id)
    where client_reference is not null and payment_id is not null;

-- Sellers have their own networks, tokens and prices: without this the planner takes filters for independent that are not.
create statistics payments_columns_go_together (mcv, dependencies) on network, asset, payee, state from payments;

-- What the endpoints said to the bytes, for the reader of a post-mortem; nothing is decided by it.
alter table attempts
    add column broadcast text,
    add column broadcast_reason text,
    add column broadcast_at timestamptz,
    add constraint attempts_broadcast_is_known check (broadcast in ('accepted', 'rejected', 'unknown')),
    add constraint attempts_broadcast_has_a_time check ((broadcast is null) = (broadcast_at is null));

comment on column attempts.broadcast is 'the latest reply; unknown: no endpoint said anything that counts, they may have been sent; null: none was heard';
comment on column attempts.broadcast_reason is 'why it was rejected';
comment on column attempts.broadcast_at is 'when the latest reply was heard';

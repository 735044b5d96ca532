-- Indexes of the payment history, for 100,000 payments and more. Newest first is the only order, so every index that finds payments
-- ends with it, and a page is read from where it begins. Times are bounds as often as filters: the order is by time of acceptance, then id.
create index payments_by_time on payments (created_at, id) include (network, asset, payer, payee, amount, state);
create index payments_by_payer on payments (payer, created_at, id);
create index payments_by_payee on payments (payee, created_at, id);
create index payments_by_state on payments (state, created_at, id);
create index payments_by_asset on payments (asset, network, created_at, id);
create index payments_by_amount on payments (amount, created_at, id);
-- By hash, because a B-tree refuses long texts.
create index payments_by_resource on payments (hashtextextended(resource, 0), created_at, id) where resource is not null;

-- Sessions are found from their payments and the other way round; a buyer may use one reference for many purchases.
create index sessions_by_client_reference on sessions (client_reference, payment_id) include (id)
    where client_reference is not null and payment_id is not null;

-- Sellers have their own networks, tokens and prices: without this the planner takes filters for independent that are not.
create statistics payments_columns_go_together (mcv, dependencies) on network, asset, payee, state from payments;

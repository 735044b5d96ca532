-- Payments that were turned away before they were accepted, so that an operator can say why a buyer could not pay.
create table refusals (
    id uuid,
    at timestamptz not null,
    request_id text not null,
    endpoint text not null,
    code text not null,
    message text not null,
    network text,
    payer bytea,
    payee bytea,
    asset bytea,
    amount numeric(78, 0),
    caller text not null,
    constraint refusals_pkey primary key (id),
    constraint refusals_endpoint_is_known check (endpoint in ('verify', 'settle', 'sessions', 'transfer')),
    constraint refusals_texts_are_short check (
        octet_length(request_id) <= 128 and octet_length(code) <= 128 and octet_length(message) <= 2048
    ),
    constraint refusals_network_is_caip2 check (network ~ '^eip155:[1-9][0-9]*$'),
    constraint refusals_addresses_have_20_bytes check (
        octet_length(payer) = 20 and octet_length(payee) = 20 and octet_length(asset) = 20
    ),
    constraint refusals_amount_is_uint256 check (amount >= 0 and amount < 2::numeric ^ 256),
    constraint refusals_caller_is_known check (caller ~ '^([0-9a-hjkmnp-tv-z]{12}|operator|anonymous)$')
);

-- Anybody can be refused as often as they like. So the rows are few, there is no index but that of the pages, and whoever writes them limits
-- how many there are in a second.
comment on table refusals is 'requests to verify, settle or open a session that were refused; kept for seven days, the newest 100000';
comment on column refusals.id is 'uuid v7: rows sort by time';
comment on column refusals.at is 'time of the refusal';
comment on column refusals.request_id is 'id of the request in the log';
comment on column refusals.endpoint is 'verify, settle, sessions: a session was to be opened, transfer: something was submitted for one';
comment on column refusals.code is 'stable code of the refusal';
comment on column refusals.message is 'the same for people; never a secret';
comment on column refusals.network is 'CAIP-2; null, like the columns after it: it could not be read';
comment on column refusals.amount is 'atomic units of the asset that the seller asked for';
comment on column refusals.caller is 'whose request it was: the id of a key, operator, or anonymous';

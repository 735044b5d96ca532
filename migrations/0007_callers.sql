-- Callers: the keys of sellers, and to whom a payment belongs.

-- A check constraint may not have a subquery.
create function keys_are_addresses(list bytea[]) returns boolean language sql immutable parallel safe as $$
    select coalesce(bool_and(octet_length(one) = 20), true) from unnest(list) as one
$$;

create table keys (
    id text,
    name text not null,
    secret_hash bytea not null,
    earlier_hash bytea,
    earlier_until timestamptz,
    scopes text[] not null,
    payees bytea[] not null default '{}',
    networks text[] not null default '{}',
    gas_wei_per_day numeric(78, 0),
    created_at timestamptz not null default now(),
    expires_at timestamptz,
    revoked_at timestamptz,
    constraint keys_pkey primary key (id),
    constraint keys_id_is_well_formed check (id ~ '^[0-9a-hjkmnp-tv-z]{12}$'),
    constraint keys_name_is_short check (length(name) between 1 and 64),
    constraint keys_hashes_have_32_bytes check (octet_length(secret_hash) = 32 and octet_length(earlier_hash) = 32),
    constraint keys_earlier_secret_has_an_end check ((earlier_hash is null) = (earlier_until is null)),
    constraint keys_scopes_are_known check (scopes <@ array['settle', 'history', 'admin'] and cardinality(scopes) > 0),
    constraint keys_payees_have_20_bytes check (keys_are_addresses(payees)),
    constraint keys_networks_are_caip2 check (array_to_string(networks, ',') ~ '^(eip155:[1-9][0-9]*(,|$))*$'),
    -- The operator's key has no limits; every other one names who may be paid.
    constraint keys_admin_is_alone check (
        case when 'admin' = any(scopes)
            then cardinality(scopes) = 1 and payees = '{}' and networks = '{}' and gas_wei_per_day is null
            else payees <> '{}' end
    ),
    constraint keys_gas_is_uint256 check (gas_wei_per_day >= 0 and gas_wei_per_day < 2::numeric ^ 256),
    constraint keys_expire_after_their_creation check (expires_at > created_at)
);

comment on table keys is 'who may call from elsewhere, and for which payees; never deleted, because payments name them';
comment on column keys.id is 'public part of the key: in logs, in payments.caller, in commands';
comment on column keys.name is 'the operator''s name for it';
comment on column keys.secret_hash is 'sha-256 of the secret part, which is stored nowhere';
comment on column keys.earlier_hash is 'the same of the secret before the last rotation';
comment on column keys.earlier_until is 'the secret before the last rotation is good until then';
comment on column keys.scopes is 'settle: verify, settle and sessions; history: read payments; admin: everything the operator may';
comment on column keys.payees is 'who may be paid, and whose payments may be read';
comment on column keys.networks is 'CAIP-2; empty: every network that is served';
comment on column keys.gas_wei_per_day is 'wei that its payments may cost in 24 hours on each network; null: no limit of its own';
comment on column keys.expires_at is 'not good any more from then on; null: never';
comment on column keys.revoked_at is 'not good any more since then';

create unique index keys_one_live_per_name on keys (name) where revoked_at is null;

alter table payments add column caller text;
alter table payments add constraint payments_caller_is_known check (
    caller ~ '^([0-9a-hjkmnp-tv-z]{12}|operator|anonymous)$'
);

comment on column payments.caller is 'whose /settle accepted it: the id of a key, operator, or anonymous; null until the first /settle of a payment that came otherwise';

-- Running x402d processes. A process renews its lease every 3 s. Only the database's clock decides whether a process has died, so a
-- wrong clock on one machine takes nothing from another process.
create table processes (
    id uuid,
    version text not null,
    serves text[] not null default '{}',
    started_at timestamptz not null default now(),
    lease_until timestamptz not null,
    ended_at timestamptz,
    constraint processes_pkey primary key (id)
);

comment on table processes is 'one row per started x402d process';
comment on column processes.id is 'uuid v7';
comment on column processes.version is 'version of the program';
comment on column processes.serves is 'CAIP-2 names of the networks whose RPC has answered this process lately; lanes are spread over these processes';
comment on column processes.started_at is 'time of the start';
comment on column processes.lease_until is 'the process counts as dead after this time';
comment on column processes.ended_at is 'set by an orderly shutdown; null after a kill';

-- A test chain that was restarted keeps its chain id, but nothing in the ledger is true of it. The genesis block tells the two apart.
create table networks (
    network text,
    genesis_hash bytea not null,
    exact_proxy boolean not null default false,
    upto_proxy boolean not null default false,
    first_seen_at timestamptz not null default now(),
    constraint networks_pkey primary key (network),
    constraint networks_name_is_caip2 check (network ~ '^eip155:[1-9][0-9]*$'),
    constraint networks_genesis_hash_has_32_bytes check (octet_length(genesis_hash) = 32)
);

comment on table networks is 'the identity of each chain in this ledger';
comment on column networks.network is 'CAIP-2';
comment on column networks.genesis_hash is 'hash of block 0';
-- Sellers read /supported once, when they start: the answer must not depend on whether an RPC answers at that moment.
comment on column networks.exact_proxy is 'Permit2 and the proxy of scheme exact had code when the chain was last asked';
comment on column networks.upto_proxy is 'Permit2 and the proxy of scheme upto had code when the chain was last asked';
comment on column networks.first_seen_at is 'time of the first start on this network';

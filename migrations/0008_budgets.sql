-- What the operator pays for gas, so that each network, payee, payer and key can have a limit per day.
create table gas_spending (
    network text,
    scope text,
    subject bytea,
    hour timestamptz,
    spent_wei numeric(78, 0) not null default 0,
    reserved_wei numeric(78, 0) not null default 0,
    constraint gas_spending_pkey primary key (network, scope, subject, hour),
    constraint gas_spending_network_is_caip2 check (network ~ '^eip155:[1-9][0-9]*$'),
    constraint gas_spending_scope_is_a_word check (scope ~ '^[a-z_]{1,32}$'),
    constraint gas_spending_subject_is_short check (octet_length(subject) <= 32)
) with (fillfactor = 50);

-- A budget is the sum of its last hours. Who adds to one locks its row of the hour, so that two writers together stay within the limit.
comment on table gas_spending is 'native currency spent on transactions, by scope and hour';
comment on column gas_spending.scope is 'whose budget: network, payee, payer, key';
comment on column gas_spending.subject is 'address of the payee or payer; id of the key; empty for the network';
comment on column gas_spending.hour is 'the hour in which the transactions were written';
comment on column gas_spending.spent_wei is 'what the receipts of mined transactions say';
comment on column gas_spending.reserved_wei is 'most that transactions without a receipt may cost';

create index gas_spending_by_hour on gas_spending (hour);

create table gas_reservations (
    transaction_id uuid,
    scope text,
    subject bytea,
    gas bigint not null,
    constraint gas_reservations_pkey primary key (transaction_id, scope, subject),
    constraint gas_reservations_belong_to_a_transaction foreign key (transaction_id) references transactions (id),
    constraint gas_reservations_gas_is_positive check (gas > 0)
);

comment on table gas_reservations is 'the budgets that a transaction counts in, and the share of each';
comment on column gas_reservations.gas is 'share of the transaction''s cost; the whole is the row of scope network';

alter table transactions
    add column reserved_wei numeric(78, 0) not null default 0,
    add column spent_wei numeric(78, 0) not null default 0;

comment on column transactions.reserved_wei is 'most that any of its attempts may cost, with the native currency that it transfers';
comment on column transactions.spent_wei is 'what its last receipt says it cost, with the native currency that it transferred';

-- Payers whose payments were mined in vain, by their own doing: each is served again after a while, which doubles.
create table suspensions (
    network text,
    kind text,
    subject bytea,
    failures integer not null,
    counted_at timestamptz not null,
    suspended_until timestamptz not null,
    constraint suspensions_pkey primary key (network, kind, subject),
    constraint suspensions_network_is_caip2 check (network ~ '^eip155:[1-9][0-9]*$'),
    constraint suspensions_kind_is_known check (kind in ('payer', 'code')),
    constraint suspensions_subject_fits_its_kind check (octet_length(subject) = case kind when 'payer' then 20 else 32 end),
    constraint suspensions_failures_are_counted check (failures > 0),
    constraint suspensions_begin_before_they_end check (counted_at < suspended_until)
);

comment on table suspensions is 'payers and wallet codes that wasted gas, and until when no payment of theirs is sent';
comment on column suspensions.subject is 'address of the payer, or keccak-256 of the wallet''s code';
comment on column suspensions.failures is 'suspensions in a row; forgotten a day after the last one has ended';
comment on column suspensions.counted_at is 'when the last failure was counted; transactions written before belong to the same one';

create index suspensions_by_end on suspensions (network, suspended_until);

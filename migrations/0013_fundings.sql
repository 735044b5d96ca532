-- Native money that payers are given so that their approvals of Permit2 can be mined. They can keep it, so it is counted.
create table fundings (
    payment_id uuid,
    network text not null,
    payer bytea not null,
    wei numeric(78, 0) not null,
    transaction_id uuid not null,
    created_at timestamptz not null default now(),
    constraint fundings_one_per_payment primary key (payment_id),
    constraint fundings_belong_to_a_payment foreign key (payment_id) references payments (id),
    constraint fundings_belong_to_a_transaction foreign key (transaction_id) references transactions (id),
    constraint fundings_payer_has_20_bytes check (octet_length(payer) = 20),
    constraint fundings_wei_is_positive check (wei > 0)
);

comment on table fundings is 'gas money given to a payer, once per payment';
comment on column fundings.wei is 'what the payer lacked for its approval';
comment on column fundings.transaction_id is 'the transaction of ours that carries it';

create index fundings_of_a_day on fundings (network, created_at) include (payer, wei);

alter table transactions
    drop constraint transactions_kind_is_known,
    add constraint transactions_kind_is_known check (kind in ('direct', 'batch', 'funding'));

comment on column transactions.kind is 'direct: one settlement; batch: several, by Multicall3, each of which may fail alone; funding: gas money for a payer';

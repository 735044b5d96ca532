-- Several payments in one transaction.
alter table transactions
    drop constraint transactions_kind_is_known,
    add constraint transactions_kind_is_known check (kind in ('direct', 'batch'));

comment on column transactions.kind is 'direct: one transferWithAuthorization; batch: several, by Multicall3, each of which may fail alone';

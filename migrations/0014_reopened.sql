-- What a mined transaction did not do for a payment is decided later, at depth and apart from the lane: until then the row of the payment in
-- that transaction stays open. And what blocks prove, a reorganisation takes back.
insert into payment_transitions (from_state, to_state, why) values
    ('refused', 'inflight', 'the block in which its transaction did nothing left the chain'),
    ('late_settled', 'inflight', 'its block left the chain'),
    ('late_settled', 'queued', 'its block left the chain, and no transaction of ours carries it');

drop index payments_unfinal;
create index payments_unfinal on payments (network, block_number) where state in ('mined', 'settled', 'late_settled');

-- The process that sees a fork is not always the one that owns the lane.
alter table lanes add column reopened bigint not null default 0;
comment on column lanes.reopened is 'counts how often transactions of the lane were opened again: its owner reads them anew when this has changed';

-- A nonce may be used for nothing: what rode in the transaction was not even tried.
alter table attempts add column empty boolean not null default false;
comment on column attempts.empty is 'a transfer of nothing to the signer itself, in place of a content that can do nothing any more or that no node takes';

comment on column transaction_payments.outcome is 'null while the transaction is not mined, or what it did is not decided; elsewhere: another transaction moved this money';

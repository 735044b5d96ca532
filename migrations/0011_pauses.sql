-- The operator can pause a lane, and resume one that x402d has stopped, without SQL.

alter table lanes add column paused_at timestamptz;
alter table lanes add column draining boolean not null default false;
alter table lanes add constraint lanes_drain_is_a_pause check (not draining or paused_at is not null);

comment on column lanes.paused_at is 'since when the operator wants no new payments for it; null: not paused. What it has sent is still followed';
comment on column lanes.draining is 'the lane still sends what is queued; without it a paused lane writes no new nonce';

comment on column lanes.epoch is 'number of owners and pauses so far; part of every write of a nonce';

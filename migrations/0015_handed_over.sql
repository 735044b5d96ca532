-- Which process has a queued payment in hand: any process may accept, and one that owns a lane settles.
alter table payments add column queued_by uuid;
comment on column payments.queued_by is 'process that has it in its memory while it is queued; null: whoever owns a lane takes it';
create index payments_nobodys on payments (network, queued_at) where state = 'queued' and queued_by is null;

-- Lanes are spread over the processes that can work them.
alter table processes add column serves text[] not null default '{}';
comment on column processes.serves is 'networks, in CAIP-2, whose RPC has answered this process lately';

-- Events of signers, networks, budgets and keys join those of payments, and readers of /events follow all of them in one order.

-- Numbers of an identity are drawn before the commit: of two statements at the same time the later number may become visible first, and a
-- reader that has passed it would never see the other one. Transaction ids have a horizon, pg_snapshot_xmin: below it every transaction has
-- ended, so rows below it are complete. The order is therefore (xact, id), and readers stop at the horizon. Without a default at first: rows
-- from before this migration keep null, are not rewritten, and are in no feed.
alter table events add column xact xid8;
alter table events alter column xact set default pg_current_xact_id();
alter table events add column network text;
alter table events add column signer bytea;
alter table events add column subject text;
alter table events alter column payment_id set default '00000000-0000-0000-0000-000000000000';

alter table events drop constraint events_kind_is_known;
alter table events add constraint events_kind_is_known check (kind in (
    'state', 'granted', 'answered', 'voided', 'quarantined', 'reorged',
    'signer.low', 'signer.empty', 'signer.stopped', 'signer.paused', 'signer.resumed',
    'network.down', 'network.up', 'budget.low', 'budget.exhausted', 'key.created', 'key.revoked'
)) not valid;
-- The nil UUID keeps the primary key, which would take a rebuild of the whole history otherwise.
alter table events add constraint events_of_no_payment_have_the_nil_id check (
    (payment_id = '00000000-0000-0000-0000-000000000000') = (kind like '%.%')
) not valid;
alter table events add constraint events_network_is_caip2 check (network ~ '^eip155:[1-9][0-9]*$') not valid;
alter table events add constraint events_signer_has_20_bytes check (octet_length(signer) = 20) not valid;

comment on table events is 'what happened to a payment, and to signers, networks, budgets and keys, in order';
comment on column events.payment_id is 'the nil UUID: it concerns no payment';
comment on column events.kind is 'state: a change of state; granted, answered, voided: its grant; quarantined; reorged; with a dot: the type as readers see it';
comment on column events.xact is 'transaction that wrote it: with the id the order of the feed; null: from before there was one';
comment on column events.network is 'CAIP-2, where it concerns no payment';
comment on column events.subject is 'what it concerns besides: the id of a key, or the subject of a budget';

create function lanes_tell() returns trigger language plpgsql as $$
begin
    if new.stopped_reason is not null and old.stopped_reason is null then
        insert into events (kind, network, signer, reason) values ('signer.stopped', new.network, new.signer, new.stopped_reason);
    end if;
    if new.paused_at is not null and (old.paused_at is null or old.draining <> new.draining) then
        insert into events (kind, network, signer, reason)
        values ('signer.paused', new.network, new.signer, case when new.draining then 'draining' else 'paused' end);
    end if;
    if new.stopped_reason is null and new.paused_at is null then
        insert into events (kind, network, signer) values ('signer.resumed', new.network, new.signer);
    end if;
    return null;
end
$$;

-- Not for leases and nonces, which are written all the time.
create trigger lanes_every_stop_and_pause_is_recorded after update of stopped_reason, paused_at, draining on lanes
    for each row when (
        (old.stopped_reason is null) is distinct from (new.stopped_reason is null)
        or (old.paused_at is null) is distinct from (new.paused_at is null) or old.draining is distinct from new.draining
    ) execute function lanes_tell();

create function keys_tell() returns trigger language plpgsql as $$
begin
    insert into events (kind, subject) values (case when tg_op = 'INSERT' then 'key.created' else 'key.revoked' end, new.id);
    return null;
end
$$;

create trigger keys_every_creation_is_recorded after insert on keys for each row execute function keys_tell();
create trigger keys_every_revocation_is_recorded after update of revoked_at on keys
    for each row when (old.revoked_at is null and new.revoked_at is not null) execute function keys_tell();

-- The last level of each balance, network and budget. Every process measures them; only a change writes an event.
create table levels (
    topic text,
    network text not null,
    subject text,
    level text not null,
    since timestamptz not null default now(),
    constraint levels_pkey primary key (topic, network, subject),
    constraint levels_topic_is_known check (topic in ('signer', 'network', 'budget')),
    constraint levels_level_is_known check (level in ('good', 'up', 'low', 'empty', 'exhausted', 'down')),
    constraint levels_network_is_caip2 check (network ~ '^eip155:[1-9][0-9]*$')
);

comment on table levels is 'the last known level of a signer''s balance, a network and a gas budget';
comment on column levels.subject is 'address of the signer; scope and subject of the budget; empty for a network';
comment on column levels.level is 'good, low, empty: a signer; up, down: a network; good, low, exhausted: a budget';

create function levels_tell() returns trigger language plpgsql as $$
begin
    -- What is well from the start is no news, and a balance that is well again is none either.
    if new.level <> 'good' and not (tg_op = 'INSERT' and new.level = 'up') then
        insert into events (kind, network, signer, subject)
        values (
            new.topic || '.' || new.level, new.network,
            case when new.topic = 'signer' then decode(substr(new.subject, 3), 'hex') end,
            case when new.topic = 'budget' then new.subject end
        );
    end if;
    return null;
end
$$;

create trigger levels_every_change_is_recorded after insert or update of level on levels
    for each row execute function levels_tell();

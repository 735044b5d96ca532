-- What payers have promised: the sum of their payments that may still move money, in one row each, so that acceptances of one payer
-- wait for each other and never promise more than its balance. The payments themselves are the holds.
create table payer_accounts (
    network text,
    asset bytea,
    payer bytea,
    held numeric(78, 0) not null default 0,
    settled_block bigint not null default 0,
    constraint payer_accounts_pkey primary key (network, asset, payer),
    constraint payer_accounts_network_is_caip2 check (network ~ '^eip155:[1-9][0-9]*$'),
    constraint payer_accounts_addresses_have_20_bytes check (octet_length(asset) = 20 and octet_length(payer) = 20),
    constraint payer_accounts_held_is_natural check (held >= 0),
    constraint payer_accounts_settled_block_is_a_height check (settled_block >= 0)
);

comment on table payer_accounts is 'what a payer has promised and not paid yet';
comment on column payer_accounts.held is 'atomic units: the sum of its authorizations that are queued or in flight';
comment on column payer_accounts.settled_block is 'newest block in which a held payment moved: a balance read before it still contains money that is gone';

insert into payer_accounts (network, asset, payer, held)
select network, asset, payer, sum(amount) from payments
where rail = 'authorization' and state in ('queued', 'inflight') group by network, asset, payer;

-- Guard, history and holds follow every statement, however many payments it touches.
drop trigger payments_transition_is_allowed on payments;
drop trigger payments_every_transition_is_recorded on payments;
drop function payments_guard_transition();
drop function payments_record_transition();

create function payments_touch() returns trigger language plpgsql as $$
begin
    new.updated_at := now();
    return new;
end
$$;

create trigger payments_updates_are_dated before update on payments
    for each row execute function payments_touch();

create function payments_begin() returns trigger language plpgsql as $$
begin
    insert into events (payment_id, kind, to_state, reason, transaction_hash)
    select id, 'state', state, reason, transaction_hash from begun;
    update payer_accounts a set held = a.held + promised.amount
    from (
        select network, asset, payer, sum(amount) as amount from begun
        where rail = 'authorization' and state in ('queued', 'inflight') group by network, asset, payer
    ) promised
    where a.network = promised.network and a.asset = promised.asset and a.payer = promised.payer;
    return null;
end
$$;

create trigger payments_every_beginning_is_recorded after insert on payments
    referencing new table as begun for each statement execute function payments_begin();

create function payments_move() returns trigger language plpgsql as $$
declare
    wrong record;
begin
    select was.id, was.state as from_state, now_is.state as to_state into wrong
    from was join now_is on now_is.id = was.id
    where was.state <> now_is.state and not exists (
        select from payment_transitions t where t.from_state = was.state and t.to_state = now_is.state
    ) limit 1;
    if found then
        raise exception 'payment % may not go from % to %', wrong.id, wrong.from_state, wrong.to_state
            using errcode = 'check_violation', constraint = 'payments_transition_is_allowed';
    end if;
    insert into events (payment_id, kind, from_state, to_state, reason, transaction_hash)
    select now_is.id, 'state', was.state, now_is.state, now_is.reason, now_is.transaction_hash
    from was join now_is on now_is.id = was.id where was.state <> now_is.state;
    -- Locked in one order by everybody, so that no two statements wait for each other.
    with changed as (
        select now_is.network, now_is.asset, now_is.payer,
            sum(case when now_is.state in ('queued', 'inflight') then now_is.amount else -now_is.amount end) as amount,
            coalesce(max(now_is.block_number), 0) as settled_block, min(was.block_number) - 1 as reopened_above
        from was join now_is on now_is.id = was.id
        where now_is.rail = 'authorization'
            and (was.state in ('queued', 'inflight')) <> (now_is.state in ('queued', 'inflight'))
        group by now_is.network, now_is.asset, now_is.payer
    ), locked as (
        select a.network, a.asset, a.payer, changed.amount, changed.settled_block, changed.reopened_above
        from payer_accounts a join changed on a.network = changed.network and a.asset = changed.asset and a.payer = changed.payer
        order by a.network, a.asset, a.payer for update of a
    )
    update payer_accounts a set held = a.held + locked.amount,
        settled_block = greatest(least(greatest(a.settled_block, locked.settled_block), locked.reopened_above), 0)
    from locked
    where a.network = locked.network and a.asset = locked.asset and a.payer = locked.payer;
    return null;
end
$$;

create trigger payments_every_transition_is_recorded after update on payments
    referencing old table as was new table as now_is for each statement execute function payments_move();

-- Events come from these triggers and from statements that begin at a payment, and payments are never deleted: the check would cost
-- more than all else about an event.
alter table events drop constraint events_belong_to_a_payment;

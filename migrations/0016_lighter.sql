-- Plans of a function's statements live as long as its connection, and the first may have been made for a single payment: joined in loops, a
-- batch of two hundred then compares forty thousand pairs. Full joins are never made in loops, and here each row has its other half.
create or replace function payments_move() returns trigger language plpgsql as $$
declare
    wrong record;
begin
    select was.id, was.state as from_state, now_is.state as to_state into wrong
    from was full join now_is on now_is.id = was.id
    where was.state is distinct from now_is.state and not exists (
        select from payment_transitions t where t.from_state = was.state and t.to_state = now_is.state
    ) limit 1;
    if found then
        raise exception 'payment % may not go from % to %', wrong.id, wrong.from_state, wrong.to_state
            using errcode = 'check_violation', constraint = 'payments_transition_is_allowed';
    end if;
    insert into events (payment_id, kind, from_state, to_state, reason, transaction_hash)
    select now_is.id, 'state', was.state, now_is.state, now_is.reason, now_is.transaction_hash
    from was full join now_is on now_is.id = was.id where was.state is distinct from now_is.state;
    -- Locked in one order by everybody, so that no two statements wait for each other.
    with changed as (
        select now_is.network, now_is.asset, now_is.payer,
            sum(case when now_is.state in ('queued', 'inflight') then now_is.amount else -now_is.amount end) as amount,
            coalesce(max(now_is.block_number), 0) as settled_block, min(was.block_number) - 1 as reopened_above
        from was full join now_is on now_is.id = was.id
        where coalesce(was.rail, now_is.rail) = 'authorization'
            and (was.state in ('queued', 'inflight')) is distinct from (now_is.state in ('queued', 'inflight'))
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

-- Events are read by payment, and written five times for each: one index does.
alter table events drop constraint events_pkey;
drop index events_by_payment;
alter table events add constraint events_pkey primary key (payment_id, id);

-- Signatures and calldata full of hashes do not get smaller by compression.
alter table attempts alter column raw set storage external;
alter table payments alter column signature set storage external;


CREATE FUNCTION public.keys_are_addresses(list bytea[]) RETURNS boolean
    LANGUAGE sql IMMUTABLE PARALLEL SAFE
    AS $$
    select coalesce(bool_and(octet_length(one) = 20), true) from unnest(list) as one
$$;

CREATE FUNCTION public.keys_tell() RETURNS trigger
    LANGUAGE plpgsql
    AS $$
begin
    insert into events (kind, subject) values (case when tg_op = 'INSERT' then 'key.created' else 'key.revoked' end, new.id);
    return null;
end
$$;

CREATE FUNCTION public.lanes_tell() RETURNS trigger
    LANGUAGE plpgsql
    AS $$
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

CREATE FUNCTION public.levels_tell() RETURNS trigger
    LANGUAGE plpgsql
    AS $$
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

CREATE FUNCTION public.payments_begin() RETURNS trigger
    LANGUAGE plpgsql
    AS $$
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

CREATE FUNCTION public.payments_move() RETURNS trigger
    LANGUAGE plpgsql
    AS $$
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
    -- Accounts are locked in one order everywhere, so that no two statements wait for each other.
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
        -- A reorg may have taken the newest block back.
        settled_block = greatest(least(greatest(a.settled_block, locked.settled_block), locked.reopened_above), 0)
    from locked
    where a.network = locked.network and a.asset = locked.asset and a.payer = locked.payer;
    return null;
end
$$;

CREATE FUNCTION public.payments_touch() RETURNS trigger
    LANGUAGE plpgsql
    AS $$
begin
    new.updated_at := now();
    return new;
end
$$;

CREATE FUNCTION public.transaction_payments_are_of_its_signer() RETURNS trigger
    LANGUAGE plpgsql
    AS $$
begin
    -- Looked up row by row: a plan made while the tables are young would read them whole.
    if exists (
        select from riding
        where (select p.signer from payments p where p.id = riding.payment_id)
            <> (select t.signer from transactions t where t.id = riding.transaction_id)
    ) then
        raise exception 'a payment may ride in transactions of the signer that it names alone'
            using errcode = 'check_violation', constraint = 'transaction_payments_ride_with_their_signer';
    end if;
    return null;
end
$$;

CREATE TABLE public.attempts (
    hash bytea NOT NULL,
    transaction_id uuid NOT NULL,
    sequence smallint NOT NULL,
    raw bytea NOT NULL,
    empty boolean DEFAULT false NOT NULL,
    gas_limit bigint NOT NULL,
    max_fee_wei numeric(78,0) NOT NULL,
    max_priority_fee_wei numeric(78,0) NOT NULL,
    signed_at timestamp with time zone DEFAULT now() NOT NULL,
    broadcast text,
    broadcast_reason text,
    broadcast_at timestamp with time zone,
    CONSTRAINT attempts_broadcast_has_a_time CHECK (((broadcast IS NULL) = (broadcast_at IS NULL))),
    CONSTRAINT attempts_broadcast_is_known CHECK ((broadcast = ANY (ARRAY['accepted'::text, 'rejected'::text, 'unknown'::text]))),
    CONSTRAINT attempts_hash_has_32_bytes CHECK ((octet_length(hash) = 32))
);
ALTER TABLE ONLY public.attempts ALTER COLUMN raw SET STORAGE EXTERNAL;

COMMENT ON TABLE public.attempts IS 'signed bytes, committed before they are sent';

COMMENT ON COLUMN public.attempts.sequence IS 'position among the attempts of the transaction';

COMMENT ON COLUMN public.attempts.raw IS 'EIP-2718 envelope; sending it again is harmless';

COMMENT ON COLUMN public.attempts.empty IS 'an empty self-transfer that frees the nonce, in place of a content that is expired or that no node takes';

COMMENT ON COLUMN public.attempts.max_fee_wei IS 'wei per gas';

COMMENT ON COLUMN public.attempts.max_priority_fee_wei IS 'wei per gas';

COMMENT ON COLUMN public.attempts.broadcast IS 'latest reply of the endpoints; unknown: none that counts, the bytes may have been sent; null: none yet';

COMMENT ON COLUMN public.attempts.broadcast_reason IS 'why it was rejected';

COMMENT ON COLUMN public.attempts.broadcast_at IS 'time of the latest reply';

CREATE TABLE public.events (
    id bigint NOT NULL,
    payment_id uuid DEFAULT '00000000-0000-0000-0000-000000000000'::uuid NOT NULL,
    at timestamp with time zone DEFAULT clock_timestamp() NOT NULL,
    kind text NOT NULL,
    from_state text,
    to_state text,
    reason text,
    transaction_hash bytea,
    xact xid8 DEFAULT pg_current_xact_id(),
    network text,
    signer bytea,
    subject text,
    CONSTRAINT events_state_kind_names_a_state CHECK (((kind = 'state'::text) = (to_state IS NOT NULL)))
);

COMMENT ON TABLE public.events IS 'what happened to a payment, and to signers, networks, budgets and keys, in order';

COMMENT ON COLUMN public.events.payment_id IS 'the nil UUID: it concerns no payment';

COMMENT ON COLUMN public.events.kind IS 'state: a change of state; granted, answered, voided: its grant; quarantined; reorged; with a dot: the type as readers see it';

COMMENT ON COLUMN public.events.reason IS 'code of a refusal or failure; for a grant the id of the request';

COMMENT ON COLUMN public.events.xact IS 'transaction that wrote it: with the id the order of the feed; null: from before there was one';

COMMENT ON COLUMN public.events.network IS 'CAIP-2, where it concerns no payment';

COMMENT ON COLUMN public.events.subject IS 'what it concerns besides: the id of a key, or the subject of a budget';

ALTER TABLE public.events ALTER COLUMN id ADD GENERATED ALWAYS AS IDENTITY (
    SEQUENCE NAME public.events_id_seq
    START WITH 1
    INCREMENT BY 1
    NO MINVALUE
    NO MAXVALUE
    CACHE 1
);

CREATE TABLE public.foreign_nonces (
    network text NOT NULL,
    signer bytea NOT NULL,
    nonce bigint NOT NULL,
    transaction_hash bytea,
    found_at timestamp with time zone DEFAULT now() NOT NULL,
    CONSTRAINT foreign_nonces_are_natural CHECK ((nonce >= 0)),
    CONSTRAINT foreign_nonces_hash_has_32_bytes CHECK ((octet_length(transaction_hash) = 32))
);

COMMENT ON TABLE public.foreign_nonces IS 'account nonces of our signers that foreign transactions used';

COMMENT ON COLUMN public.foreign_nonces.network IS 'CAIP-2';

COMMENT ON COLUMN public.foreign_nonces.nonce IS 'account nonce';

COMMENT ON COLUMN public.foreign_nonces.transaction_hash IS 'the foreign transaction; null when no endpoint could show it';

COMMENT ON COLUMN public.foreign_nonces.found_at IS 'when it was confirmed; nonces found together count once';

CREATE TABLE public.fundings (
    payment_id uuid NOT NULL,
    network text NOT NULL,
    payer bytea NOT NULL,
    wei numeric(78,0) NOT NULL,
    transaction_id uuid NOT NULL,
    created_at timestamp with time zone DEFAULT now() NOT NULL,
    CONSTRAINT fundings_payer_has_20_bytes CHECK ((octet_length(payer) = 20)),
    CONSTRAINT fundings_wei_is_positive CHECK ((wei > (0)::numeric))
);

COMMENT ON TABLE public.fundings IS 'native currency given to a payer for gas, once per payment';

COMMENT ON COLUMN public.fundings.wei IS 'what the payer lacked for its approval';

COMMENT ON COLUMN public.fundings.transaction_id IS 'our transaction that carries it';

CREATE TABLE public.gas_reservations (
    transaction_id uuid NOT NULL,
    scope text NOT NULL,
    subject bytea NOT NULL,
    gas bigint NOT NULL,
    CONSTRAINT gas_reservations_gas_is_positive CHECK ((gas > 0))
);

COMMENT ON TABLE public.gas_reservations IS 'the budgets that a transaction counts in, and the share of each';

COMMENT ON COLUMN public.gas_reservations.gas IS 'share of the transaction''s cost; the whole is the row of scope network';

CREATE TABLE public.gas_spending (
    network text NOT NULL,
    scope text NOT NULL,
    subject bytea NOT NULL,
    hour timestamp with time zone NOT NULL,
    spent_wei numeric(78,0) DEFAULT 0 NOT NULL,
    reserved_wei numeric(78,0) DEFAULT 0 NOT NULL,
    CONSTRAINT gas_spending_network_is_caip2 CHECK ((network ~ '^eip155:[1-9][0-9]*$'::text)),
    CONSTRAINT gas_spending_scope_is_a_word CHECK ((scope ~ '^[a-z_]{1,32}$'::text)),
    CONSTRAINT gas_spending_subject_is_short CHECK ((octet_length(subject) <= 32))
)
WITH (fillfactor='50');

COMMENT ON TABLE public.gas_spending IS 'native currency spent on transactions, by scope and hour';

COMMENT ON COLUMN public.gas_spending.scope IS 'whose budget: network, payee, payer, key';

COMMENT ON COLUMN public.gas_spending.subject IS 'address of the payee or payer; id of the key; empty for the network';

COMMENT ON COLUMN public.gas_spending.hour IS 'the hour in which the transactions were written';

COMMENT ON COLUMN public.gas_spending.spent_wei IS 'what the receipts of mined transactions say';

COMMENT ON COLUMN public.gas_spending.reserved_wei IS 'most that transactions without a receipt may cost';

CREATE TABLE public.grants (
    payment_id uuid NOT NULL,
    process_id uuid NOT NULL,
    request_id text NOT NULL,
    caller text NOT NULL,
    granted_at timestamp with time zone DEFAULT now() NOT NULL,
    answered_at timestamp with time zone,
    voided_at timestamp with time zone,
    asked_as text,
    CONSTRAINT grants_answered_or_voided CHECK (((answered_at IS NULL) OR (voided_at IS NULL))),
    CONSTRAINT grants_asked_as_is_bounded CHECK (((octet_length(asked_as) >= 1) AND (octet_length(asked_as) <= 128)))
);

COMMENT ON TABLE public.grants IS 'the one success answer of a payment';

COMMENT ON COLUMN public.grants.process_id IS 'process that gives the answer; once it is dead, an unanswered grant is void';

COMMENT ON COLUMN public.grants.request_id IS 'request that was told success';

COMMENT ON COLUMN public.grants.caller IS 'network address of the caller';

COMMENT ON COLUMN public.grants.answered_at IS 'the answer was flushed to the socket';

COMMENT ON COLUMN public.grants.voided_at IS 'the connection broke first: the next presenter gets the grant';

COMMENT ON COLUMN public.grants.asked_as IS 'X-Request-Id of the caller, or request_id when it sent none; repeated to all who present the payment again; null: written before the column was there';

CREATE TABLE public.keys (
    id text NOT NULL,
    name text NOT NULL,
    secret_hash bytea NOT NULL,
    earlier_hash bytea,
    earlier_until timestamp with time zone,
    scopes text[] NOT NULL,
    payees bytea[] DEFAULT '{}'::bytea[] NOT NULL,
    networks text[] DEFAULT '{}'::text[] NOT NULL,
    gas_wei_per_day numeric(78,0),
    created_at timestamp with time zone DEFAULT now() NOT NULL,
    expires_at timestamp with time zone,
    revoked_at timestamp with time zone,
    CONSTRAINT keys_admin_is_alone CHECK (
CASE
    WHEN ('admin'::text = ANY (scopes)) THEN ((cardinality(scopes) = 1) AND (payees = '{}'::bytea[]) AND (networks = '{}'::text[]) AND (gas_wei_per_day IS NULL))
    ELSE (payees <> '{}'::bytea[])
END),
    CONSTRAINT keys_earlier_secret_has_an_end CHECK (((earlier_hash IS NULL) = (earlier_until IS NULL))),
    CONSTRAINT keys_expire_after_their_creation CHECK ((expires_at > created_at)),
    CONSTRAINT keys_gas_is_uint256 CHECK (((gas_wei_per_day >= (0)::numeric) AND (gas_wei_per_day < ((2)::numeric ^ (256)::numeric)))),
    CONSTRAINT keys_hashes_have_32_bytes CHECK (((octet_length(secret_hash) = 32) AND (octet_length(earlier_hash) = 32))),
    CONSTRAINT keys_id_is_well_formed CHECK ((id ~ '^[0-9a-hjkmnp-tv-z]{12}$'::text)),
    CONSTRAINT keys_name_is_short CHECK (((length(name) >= 1) AND (length(name) <= 64))),
    CONSTRAINT keys_networks_are_caip2 CHECK ((array_to_string(networks, ','::text) ~ '^(eip155:[1-9][0-9]*(,|$))*$'::text)),
    CONSTRAINT keys_payees_have_20_bytes CHECK (public.keys_are_addresses(payees)),
    CONSTRAINT keys_scopes_are_known CHECK (((scopes <@ ARRAY['settle'::text, 'history'::text, 'admin'::text]) AND (cardinality(scopes) > 0)))
);

COMMENT ON TABLE public.keys IS 'who may call from elsewhere, and for which payees; never deleted, because payments name them';

COMMENT ON COLUMN public.keys.id IS 'public part of the key: in logs, in payments.caller, in commands';

COMMENT ON COLUMN public.keys.name IS 'the operator''s name for it';

COMMENT ON COLUMN public.keys.secret_hash IS 'sha-256 of the secret part, which is stored nowhere';

COMMENT ON COLUMN public.keys.earlier_hash IS 'the same of the secret before the last rotation';

COMMENT ON COLUMN public.keys.earlier_until IS 'the secret before the last rotation is good until then';

COMMENT ON COLUMN public.keys.scopes IS 'settle: verify, settle and sessions; history: read payments; admin: everything the operator may';

COMMENT ON COLUMN public.keys.payees IS 'who may be paid, and whose payments may be read';

COMMENT ON COLUMN public.keys.networks IS 'CAIP-2; empty: every network that is served';

COMMENT ON COLUMN public.keys.gas_wei_per_day IS 'wei that its payments may cost in 24 hours on each network; null: no limit of its own';

COMMENT ON COLUMN public.keys.expires_at IS 'not good any more from then on; null: never';

COMMENT ON COLUMN public.keys.revoked_at IS 'not good any more since then';

CREATE TABLE public.lanes (
    network text NOT NULL,
    signer bytea NOT NULL,
    next_nonce bigint NOT NULL,
    epoch bigint NOT NULL,
    owner uuid,
    lease_until timestamp with time zone NOT NULL,
    stopped_reason text,
    reopened bigint DEFAULT 0 NOT NULL,
    paused_at timestamp with time zone,
    draining boolean DEFAULT false NOT NULL,
    CONSTRAINT lanes_drain_is_a_pause CHECK (((NOT draining) OR (paused_at IS NOT NULL))),
    CONSTRAINT lanes_network_is_caip2 CHECK ((network ~ '^eip155:[1-9][0-9]*$'::text)),
    CONSTRAINT lanes_numbers_are_natural CHECK (((next_nonce >= 0) AND (epoch > 0))),
    CONSTRAINT lanes_signer_has_20_bytes CHECK ((octet_length(signer) = 20))
);

COMMENT ON TABLE public.lanes IS 'one signer on one network: its next account nonce, and the process that may use it';

COMMENT ON COLUMN public.lanes.next_nonce IS 'first account nonce without bytes';

COMMENT ON COLUMN public.lanes.epoch IS 'number of owners and pauses so far; part of every write of a nonce';

COMMENT ON COLUMN public.lanes.owner IS 'process that owns the lane while lease_until is ahead';

COMMENT ON COLUMN public.lanes.stopped_reason IS 'set when the lane must write no new nonce without the operator, for instance after repeated foreign use of its key; what it has sent is still followed';

COMMENT ON COLUMN public.lanes.reopened IS 'counts how often a reorg reopened transactions of the lane; its owner reads them again when it has changed';

COMMENT ON COLUMN public.lanes.paused_at IS 'since when the operator wants no new payments for it; null: not paused. What it has sent is still followed';

COMMENT ON COLUMN public.lanes.draining IS 'the lane still sends what is queued; without it a paused lane writes no new nonce';

CREATE TABLE public.levels (
    topic text NOT NULL,
    network text NOT NULL,
    subject text NOT NULL,
    level text NOT NULL,
    since timestamp with time zone DEFAULT now() NOT NULL,
    CONSTRAINT levels_level_is_known CHECK ((level = ANY (ARRAY['good'::text, 'up'::text, 'low'::text, 'empty'::text, 'exhausted'::text, 'down'::text]))),
    CONSTRAINT levels_network_is_caip2 CHECK ((network ~ '^eip155:[1-9][0-9]*$'::text)),
    CONSTRAINT levels_topic_is_known CHECK ((topic = ANY (ARRAY['signer'::text, 'network'::text, 'budget'::text])))
);

COMMENT ON TABLE public.levels IS 'the last known level of a signer''s balance, a network and a gas budget';

COMMENT ON COLUMN public.levels.subject IS 'address of the signer; scope and subject of the budget; empty for a network';

COMMENT ON COLUMN public.levels.level IS 'good, low, empty: a signer; up, down: a network; good, low, exhausted: a budget';

CREATE TABLE public.networks (
    network text NOT NULL,
    genesis_hash bytea NOT NULL,
    exact_proxy boolean DEFAULT false NOT NULL,
    upto_proxy boolean DEFAULT false NOT NULL,
    first_seen_at timestamp with time zone DEFAULT now() NOT NULL,
    CONSTRAINT networks_genesis_hash_has_32_bytes CHECK ((octet_length(genesis_hash) = 32)),
    CONSTRAINT networks_name_is_caip2 CHECK ((network ~ '^eip155:[1-9][0-9]*$'::text))
);

COMMENT ON TABLE public.networks IS 'the identity of each chain in this ledger';

COMMENT ON COLUMN public.networks.network IS 'CAIP-2';

COMMENT ON COLUMN public.networks.genesis_hash IS 'hash of block 0';

COMMENT ON COLUMN public.networks.exact_proxy IS 'Permit2 and the proxy of scheme exact had code when the chain was last asked';

COMMENT ON COLUMN public.networks.upto_proxy IS 'Permit2 and the proxy of scheme upto had code when the chain was last asked';

COMMENT ON COLUMN public.networks.first_seen_at IS 'time of the first start on this network';

CREATE TABLE public.payer_accounts (
    network text NOT NULL,
    asset bytea NOT NULL,
    payer bytea NOT NULL,
    held numeric(78,0) DEFAULT 0 NOT NULL,
    settled_block bigint DEFAULT 0 NOT NULL,
    CONSTRAINT payer_accounts_addresses_have_20_bytes CHECK (((octet_length(asset) = 20) AND (octet_length(payer) = 20))),
    CONSTRAINT payer_accounts_held_is_natural CHECK ((held >= (0)::numeric)),
    CONSTRAINT payer_accounts_network_is_caip2 CHECK ((network ~ '^eip155:[1-9][0-9]*$'::text)),
    CONSTRAINT payer_accounts_settled_block_is_a_height CHECK ((settled_block >= 0))
);

COMMENT ON TABLE public.payer_accounts IS 'what a payer has promised and not paid yet';

COMMENT ON COLUMN public.payer_accounts.held IS 'atomic units: sum of its authorizations that are queued or in flight';

COMMENT ON COLUMN public.payer_accounts.settled_block IS 'newest block with a payment of this payer: a balance read before it still contains that money';

CREATE TABLE public.payment_transitions (
    from_state text NOT NULL,
    to_state text NOT NULL,
    why text NOT NULL
);

COMMENT ON TABLE public.payment_transitions IS 'allowed changes of payments.state';

COMMENT ON COLUMN public.payment_transitions.why IS 'event that causes the change';

CREATE TABLE public.payments (
    id uuid NOT NULL,
    x402_version smallint NOT NULL,
    network text NOT NULL,
    scheme text NOT NULL,
    rail text DEFAULT 'authorization'::text NOT NULL,
    asset bytea NOT NULL,
    payer bytea NOT NULL,
    payee bytea NOT NULL,
    amount numeric(78,0) NOT NULL,
    permitted numeric(78,0),
    signer bytea,
    resource text,
    nonce_domain bytea NOT NULL,
    nonce bytea NOT NULL,
    valid_after timestamp with time zone NOT NULL,
    valid_before timestamp with time zone NOT NULL,
    digest bytea NOT NULL,
    signature bytea NOT NULL,
    wallet_factory bytea,
    wallet_factory_call bytea,
    allowance_permit bytea,
    allowance_approval bytea,
    state text NOT NULL,
    reason text,
    message text,
    queued_at timestamp with time zone DEFAULT now() NOT NULL,
    queued_by uuid,
    transaction_hash bytea,
    log_index bigint,
    block_number bigint,
    block_hash bytea,
    block_time timestamp with time zone,
    confirmations integer NOT NULL,
    unmatched_reason text,
    quarantined_at timestamp with time zone,
    quarantine_reason text,
    created_at timestamp with time zone DEFAULT now() NOT NULL,
    updated_at timestamp with time zone DEFAULT now() NOT NULL,
    caller text,
    first_asker text,
    first_asker_process uuid,
    first_request text,
    CONSTRAINT payments_addresses_have_20_bytes CHECK (((octet_length(asset) = 20) AND (octet_length(payer) = 20) AND (octet_length(payee) = 20) AND (octet_length(nonce_domain) = 20))),
    CONSTRAINT payments_allowance_approval_is_bounded CHECK (((octet_length(allowance_approval) >= 1) AND (octet_length(allowance_approval) <= 8192))),
    CONSTRAINT payments_allowance_is_for_permit2 CHECK ((((allowance_permit IS NULL) OR (allowance_approval IS NULL)) AND ((permitted IS NOT NULL) OR ((allowance_permit IS NULL) AND (allowance_approval IS NULL))))),
    CONSTRAINT payments_allowance_permit_has_97_bytes CHECK ((octet_length(allowance_permit) = 97)),
    CONSTRAINT payments_amount_is_permitted CHECK (((amount <= permitted) AND ((scheme = 'upto'::text) OR (amount = permitted)))),
    CONSTRAINT payments_amount_is_uint256 CHECK (((amount >= (0)::numeric) AND (amount < ((2)::numeric ^ (256)::numeric)) AND ((amount > (0)::numeric) OR (scheme = 'upto'::text)))),
    CONSTRAINT payments_caller_is_known CHECK ((caller ~ '^([0-9a-hjkmnp-tv-z]{12}|operator|anonymous)$'::text)),
    CONSTRAINT payments_confirmations_is_positive CHECK ((confirmations > 0)),
    CONSTRAINT payments_factory_comes_with_its_call CHECK (((wallet_factory IS NULL) = (wallet_factory_call IS NULL))),
    CONSTRAINT payments_first_asker_is_bounded CHECK (((octet_length(first_asker) >= 1) AND (octet_length(first_asker) <= 128))),
    CONSTRAINT payments_first_request_is_bounded CHECK (((octet_length(first_request) >= 1) AND (octet_length(first_request) <= 128))),
    CONSTRAINT payments_first_right_is_an_askers CHECK (((first_asker_process IS NULL) OR ((first_asker IS NOT NULL) AND (first_request IS NOT NULL)))),
    CONSTRAINT payments_hashes_have_32_bytes CHECK (((octet_length(nonce) = 32) AND (octet_length(digest) = 32) AND (octet_length(transaction_hash) = 32) AND (octet_length(block_hash) = 32))),
    CONSTRAINT payments_inflight_has_a_hash CHECK (((state <> 'inflight'::text) OR (transaction_hash IS NOT NULL))),
    CONSTRAINT payments_located_iff_money_moved CHECK ((((state = ANY (ARRAY['mined'::text, 'settled'::text, 'final'::text, 'late_settled'::text])) AND (amount > (0)::numeric)) = ((transaction_hash IS NOT NULL) AND (log_index IS NOT NULL) AND (block_number IS NOT NULL) AND (block_hash IS NOT NULL)))),
    CONSTRAINT payments_location_is_whole CHECK ((((log_index IS NULL) = (block_number IS NULL)) AND ((log_index IS NULL) = (block_hash IS NULL)) AND ((log_index IS NULL) = (block_time IS NULL)))),
    CONSTRAINT payments_network_is_caip2 CHECK ((network ~ '^eip155:[1-9][0-9]*$'::text)),
    CONSTRAINT payments_nothing_is_never_sent CHECK (((amount > (0)::numeric) OR (state <> ALL (ARRAY['queued'::text, 'inflight'::text, 'mined'::text, 'late_settled'::text])))),
    CONSTRAINT payments_only_transfers_are_unmatched CHECK (((unmatched_reason IS NULL) OR (rail = 'transfer'::text))),
    CONSTRAINT payments_permitted_at_permit2 CHECK (((permitted IS NULL) OR (nonce_domain = '\x000000000022d473030f116ddee9f6b43ac78ba3'::bytea))),
    CONSTRAINT payments_permitted_is_uint256 CHECK (((permitted > (0)::numeric) AND (permitted < ((2)::numeric ^ (256)::numeric)))),
    CONSTRAINT payments_quarantine_has_a_reason CHECK (((quarantined_at IS NULL) = (quarantine_reason IS NULL))),
    CONSTRAINT payments_rail_is_known CHECK ((rail = ANY (ARRAY['authorization'::text, 'transfer'::text]))),
    CONSTRAINT payments_reason_iff_refused_or_failed CHECK (((state = ANY (ARRAY['refused'::text, 'failed'::text])) = (reason IS NOT NULL))),
    CONSTRAINT payments_scheme_is_known CHECK ((scheme = ANY (ARRAY['exact'::text, 'upto'::text]))),
    CONSTRAINT payments_signature_is_bounded CHECK (((octet_length(signature) <= 8192) AND ((rail = 'transfer'::text) OR (octet_length(signature) > 0)))),
    CONSTRAINT payments_signer_has_20_bytes CHECK ((octet_length(signer) = 20)),
    CONSTRAINT payments_state_is_known CHECK ((state = ANY (ARRAY['queued'::text, 'inflight'::text, 'mined'::text, 'settled'::text, 'final'::text, 'late_settled'::text, 'refused'::text, 'failed'::text]))),
    CONSTRAINT payments_transfers_are_sent CHECK (((rail <> 'transfer'::text) OR (state <> ALL (ARRAY['queued'::text, 'refused'::text])))),
    CONSTRAINT payments_unsent_has_no_hash CHECK (((state <> ALL (ARRAY['queued'::text, 'refused'::text])) OR (transaction_hash IS NULL))),
    CONSTRAINT payments_upto_names_its_signer CHECK ((((scheme = 'upto'::text) = (signer IS NOT NULL)) AND ((scheme = 'exact'::text) OR (permitted IS NOT NULL)))),
    CONSTRAINT payments_version_is_known CHECK ((x402_version = ANY (ARRAY[1, 2]))),
    CONSTRAINT payments_window_is_open CHECK ((valid_after < valid_before))
);
ALTER TABLE ONLY public.payments ALTER COLUMN signature SET STORAGE EXTERNAL;

COMMENT ON TABLE public.payments IS 'one payment: payer, payee, amount, state, and where it was mined';

COMMENT ON COLUMN public.payments.id IS 'uuid v7: rows sort by time of acceptance';

COMMENT ON COLUMN public.payments.x402_version IS 'version of x402 in which the payment was first presented';

COMMENT ON COLUMN public.payments.network IS 'CAIP-2';

COMMENT ON COLUMN public.payments.scheme IS 'exact: all of what was permitted; upto: what the seller charged of it';

COMMENT ON COLUMN public.payments.rail IS 'authorization: submitted by a lane; transfer: a plain transfer, sent under the payer''s own account nonce';

COMMENT ON COLUMN public.payments.asset IS 'contract of the token';

COMMENT ON COLUMN public.payments.amount IS 'atomic units of the asset to be transferred; in scheme upto the charge, which may be 0';

COMMENT ON COLUMN public.payments.permitted IS 'Permit2: the maximum that the payer signed; null for EIP-3009 and for transfers';

COMMENT ON COLUMN public.payments.signer IS 'the only signer that may settle it, because the payer signed its address; null: any signer';

COMMENT ON COLUMN public.payments.resource IS 'what was bought, as buyer or seller named it; never checked';

COMMENT ON COLUMN public.payments.nonce_domain IS 'contract in which the nonce is used: the token for EIP-3009, or Permit2; zero for a transfer, whose nonce is its session''s';

COMMENT ON COLUMN public.payments.nonce IS 'chosen by the payer; unique together with network, domain and payer';

COMMENT ON COLUMN public.payments.valid_after IS 'the block''s time must be later (whole seconds)';

COMMENT ON COLUMN public.payments.valid_before IS 'the block''s time must be earlier (whole seconds)';

COMMENT ON COLUMN public.payments.digest IS 'the 32 bytes that the payer signed; two presentations are the same payment iff it is equal; for a transfer the digest of its claim';

COMMENT ON COLUMN public.payments.signature IS 'inner signature without an ERC-6492 wrapper; may be empty for a transfer that carries its session''s tag';

COMMENT ON COLUMN public.payments.wallet_factory IS 'allowed factory that deploys the payer''s wallet (ERC-6492)';

COMMENT ON COLUMN public.payments.wallet_factory_call IS 'calldata for the factory';

COMMENT ON COLUMN public.payments.allowance_permit IS 'EIP-2612 permit by which Permit2 may take the token: deadline (32 bytes), signature (65 bytes)';

COMMENT ON COLUMN public.payments.allowance_approval IS 'the same as a transaction that the payer signed';

COMMENT ON COLUMN public.payments.state IS 'queued, inflight, mined, settled, final; refused, failed, late_settled; see payment_transitions';

COMMENT ON COLUMN public.payments.reason IS 'stable code of a refusal or failure';

COMMENT ON COLUMN public.payments.message IS 'the same for people; never a secret';

COMMENT ON COLUMN public.payments.queued_at IS 'since when it has waited for its current transaction';

COMMENT ON COLUMN public.payments.queued_by IS 'process that has claimed it while it is queued; null: unclaimed, the owner of any lane takes it';

COMMENT ON COLUMN public.payments.transaction_hash IS 'newest attempt while in flight, then the transaction that moved the money';

COMMENT ON COLUMN public.payments.log_index IS 'index of the Transfer log in its block';

COMMENT ON COLUMN public.payments.block_time IS 'timestamp of the block';

COMMENT ON COLUMN public.payments.confirmations IS 'blocks promised at acceptance; 1: its own block';

COMMENT ON COLUMN public.payments.unmatched_reason IS 'the money moved too late to count; never granted';

COMMENT ON COLUMN public.payments.quarantined_at IS 'quarantined for the operator because an assumption did not hold; the state is kept';

COMMENT ON COLUMN public.payments.updated_at IS 'time of the last change of the row';

COMMENT ON COLUMN public.payments.caller IS 'whose /settle accepted it: the id of a key, operator, or anonymous; null until the first /settle of a payment that came otherwise';

COMMENT ON COLUMN public.payments.first_asker IS 'grants.asked_as of the request that had it accepted; null: accepted without a request to settle';

COMMENT ON COLUMN public.payments.first_asker_process IS 'process in which that request waits: nobody else is granted while it does; null: its connection or its wait has ended';

COMMENT ON COLUMN public.payments.first_request IS 'grants.request_id of that request: it alone ends its first right, not an earlier one that was asked under the same id';

CREATE TABLE public.processes (
    id uuid NOT NULL,
    version text NOT NULL,
    serves text[] DEFAULT '{}'::text[] NOT NULL,
    started_at timestamp with time zone DEFAULT now() NOT NULL,
    lease_until timestamp with time zone NOT NULL,
    ended_at timestamp with time zone
);

COMMENT ON TABLE public.processes IS 'one row per started x402d process';

COMMENT ON COLUMN public.processes.id IS 'uuid v7';

COMMENT ON COLUMN public.processes.version IS 'version of the program';

COMMENT ON COLUMN public.processes.serves IS 'CAIP-2 names of the networks whose RPC has answered this process lately; lanes are spread over these processes';

COMMENT ON COLUMN public.processes.started_at IS 'time of the start';

COMMENT ON COLUMN public.processes.lease_until IS 'the process counts as dead after this time';

COMMENT ON COLUMN public.processes.ended_at IS 'set by an orderly shutdown; null after a kill';

CREATE TABLE public.refusals (
    id uuid NOT NULL,
    at timestamp with time zone NOT NULL,
    request_id text NOT NULL,
    endpoint text NOT NULL,
    code text NOT NULL,
    message text NOT NULL,
    network text,
    payer bytea,
    payee bytea,
    asset bytea,
    amount numeric(78,0),
    caller text NOT NULL,
    CONSTRAINT refusals_addresses_have_20_bytes CHECK (((octet_length(payer) = 20) AND (octet_length(payee) = 20) AND (octet_length(asset) = 20))),
    CONSTRAINT refusals_amount_is_uint256 CHECK (((amount >= (0)::numeric) AND (amount < ((2)::numeric ^ (256)::numeric)))),
    CONSTRAINT refusals_caller_is_known CHECK ((caller ~ '^([0-9a-hjkmnp-tv-z]{12}|operator|anonymous)$'::text)),
    CONSTRAINT refusals_endpoint_is_known CHECK ((endpoint = ANY (ARRAY['verify'::text, 'settle'::text, 'sessions'::text, 'transfer'::text]))),
    CONSTRAINT refusals_network_is_caip2 CHECK ((network ~ '^eip155:[1-9][0-9]*$'::text)),
    CONSTRAINT refusals_texts_are_short CHECK (((octet_length(request_id) <= 128) AND (octet_length(code) <= 128) AND (octet_length(message) <= 2048)))
);

COMMENT ON TABLE public.refusals IS 'requests to verify, settle or open a session that were refused; kept for seven days, the newest 100000';

COMMENT ON COLUMN public.refusals.id IS 'uuid v7: rows sort by time';

COMMENT ON COLUMN public.refusals.at IS 'time of the refusal';

COMMENT ON COLUMN public.refusals.request_id IS 'id of the request in the log';

COMMENT ON COLUMN public.refusals.endpoint IS 'verify, settle, sessions: a session was to be opened, transfer: something was submitted for one';

COMMENT ON COLUMN public.refusals.code IS 'stable code of the refusal';

COMMENT ON COLUMN public.refusals.message IS 'the same for people; never a secret';

COMMENT ON COLUMN public.refusals.network IS 'CAIP-2; null, like the columns after it: it could not be read';

COMMENT ON COLUMN public.refusals.amount IS 'atomic units of the asset that the seller asked for';

COMMENT ON COLUMN public.refusals.caller IS 'whose request it was: the id of a key, operator, or anonymous';

CREATE TABLE public.sessions (
    id text NOT NULL,
    cancel_token_hash bytea NOT NULL,
    client text NOT NULL,
    x402_version smallint NOT NULL,
    rail text NOT NULL,
    network text NOT NULL,
    asset bytea NOT NULL,
    payer bytea NOT NULL,
    payee bytea NOT NULL,
    amount numeric(78,0) NOT NULL,
    accepted text NOT NULL,
    requirements_hash bytea NOT NULL,
    nonce bytea NOT NULL,
    resource_id text,
    resource text,
    client_reference text,
    accept_from_block bigint NOT NULL,
    confirmations integer NOT NULL,
    expires_at timestamp with time zone NOT NULL,
    state text DEFAULT 'open'::text NOT NULL,
    payment_id uuid,
    created_at timestamp with time zone DEFAULT now() NOT NULL,
    needs_id boolean DEFAULT false NOT NULL,
    CONSTRAINT sessions_addresses_have_20_bytes CHECK (((octet_length(asset) = 20) AND (octet_length(payer) = 20) AND (octet_length(payee) = 20))),
    CONSTRAINT sessions_amount_is_positive_uint256 CHECK (((amount > (0)::numeric) AND (amount < ((2)::numeric ^ (256)::numeric)))),
    CONSTRAINT sessions_confirmations_is_positive CHECK ((confirmations > 0)),
    CONSTRAINT sessions_hashes_have_32_bytes CHECK (((octet_length(cancel_token_hash) = 32) AND (octet_length(requirements_hash) = 32) AND (octet_length(nonce) = 32))),
    CONSTRAINT sessions_id_is_well_formed CHECK ((id ~ '^ps_[0-9a-hjkmnp-tv-z]{26}$'::text)),
    CONSTRAINT sessions_network_is_caip2 CHECK ((network ~ '^eip155:[1-9][0-9]*$'::text)),
    CONSTRAINT sessions_rail_is_known CHECK ((rail = ANY (ARRAY['authorization'::text, 'transfer'::text]))),
    CONSTRAINT sessions_state_is_known CHECK ((state = ANY (ARRAY['open'::text, 'cancelled'::text, 'expired'::text]))),
    CONSTRAINT sessions_transfer_is_v2 CHECK (((rail <> 'transfer'::text) OR (x402_version = 2))),
    CONSTRAINT sessions_version_is_known CHECK ((x402_version = ANY (ARRAY[1, 2])))
);

COMMENT ON TABLE public.sessions IS 'terms of one purchase: an entry of a seller''s accepts, its rail and expiry, and its payment once there is one';

COMMENT ON COLUMN public.sessions.cancel_token_hash IS 'keccak-256 of the token that the answer carried';

COMMENT ON COLUMN public.sessions.client IS 'network address of the caller that opened it (IPv6: its /56); limits of open sessions count by it';

COMMENT ON COLUMN public.sessions.rail IS 'authorization: EIP-3009, we pay for gas; transfer: a plain transfer, the payer pays for gas';

COMMENT ON COLUMN public.sessions.amount IS 'atomic units of the asset';

COMMENT ON COLUMN public.sessions.accepted IS 'the entry of accepts as canonical JSON (RFC 8785)';

COMMENT ON COLUMN public.sessions.requirements_hash IS 'keccak-256 of accepted';

COMMENT ON COLUMN public.sessions.nonce IS 'keccak-256 over id and requirements_hash: nonce of the authorization, tag of the transfer';

COMMENT ON COLUMN public.sessions.resource_id IS 'extra.resourceId of the entry: binds the session to a route of the seller';

COMMENT ON COLUMN public.sessions.resource IS 'what is bought, as the buyer named it; never checked';

COMMENT ON COLUMN public.sessions.client_reference IS 'the buyer''s own name for the purchase';

COMMENT ON COLUMN public.sessions.accept_from_block IS 'a transfer counts from this block on';

COMMENT ON COLUMN public.sessions.expires_at IS 'money that moves later, by the block''s time, does not count; validBefore of the authorization';

COMMENT ON COLUMN public.sessions.state IS 'open, cancelled or expired; whether it is paid stands in its payment';

COMMENT ON COLUMN public.sessions.needs_id IS 'its payment is granted only to a request with the session''s id, because it was submitted or presented with it';

CREATE TABLE public.suspensions (
    network text NOT NULL,
    kind text NOT NULL,
    subject bytea NOT NULL,
    failures integer NOT NULL,
    counted_at timestamp with time zone NOT NULL,
    suspended_until timestamp with time zone NOT NULL,
    CONSTRAINT suspensions_begin_before_they_end CHECK ((counted_at < suspended_until)),
    CONSTRAINT suspensions_failures_are_counted CHECK ((failures > 0)),
    CONSTRAINT suspensions_kind_is_known CHECK ((kind = ANY (ARRAY['payer'::text, 'code'::text]))),
    CONSTRAINT suspensions_network_is_caip2 CHECK ((network ~ '^eip155:[1-9][0-9]*$'::text)),
    CONSTRAINT suspensions_subject_fits_its_kind CHECK ((octet_length(subject) =
CASE kind
    WHEN 'payer'::text THEN 20
    ELSE 32
END))
);

COMMENT ON TABLE public.suspensions IS 'payers and wallet codes that wasted gas, and until when no payment of theirs is sent';

COMMENT ON COLUMN public.suspensions.subject IS 'address of the payer, or keccak-256 of the wallet''s code';

COMMENT ON COLUMN public.suspensions.failures IS 'suspensions in a row; forgotten a day after the last one has ended';

COMMENT ON COLUMN public.suspensions.counted_at IS 'when the last failure was counted; transactions written before belong to the same one';

CREATE TABLE public.transaction_payments (
    transaction_id uuid NOT NULL,
    "position" smallint NOT NULL,
    payment_id uuid NOT NULL,
    outcome text,
    CONSTRAINT transaction_payments_outcome_is_known CHECK ((outcome = ANY (ARRAY['transferred'::text, 'elsewhere'::text, 'without_effect'::text])))
);

COMMENT ON TABLE public.transaction_payments IS 'the payments of a transaction, and the result of each';

COMMENT ON COLUMN public.transaction_payments."position" IS 'index in the batch';

COMMENT ON COLUMN public.transaction_payments.outcome IS 'null while the transaction is not mined, or its effect is not decided; elsewhere: another transaction moved this money';

CREATE TABLE public.transactions (
    id uuid NOT NULL,
    network text NOT NULL,
    signer bytea NOT NULL,
    nonce bigint NOT NULL,
    epoch bigint NOT NULL,
    kind text NOT NULL,
    state text NOT NULL,
    hash bytea,
    succeeded boolean,
    block_number bigint,
    block_hash bytea,
    gas_used bigint,
    gas_price_wei numeric(78,0),
    further_fee_wei numeric(78,0) DEFAULT 0 NOT NULL,
    created_at timestamp with time zone DEFAULT now() NOT NULL,
    reserved_wei numeric(78,0) DEFAULT 0 NOT NULL,
    spent_wei numeric(78,0) DEFAULT 0 NOT NULL,
    CONSTRAINT transactions_hashes_have_32_bytes CHECK (((octet_length(hash) = 32) AND (octet_length(block_hash) = 32))),
    CONSTRAINT transactions_kind_is_known CHECK ((kind = ANY (ARRAY['direct'::text, 'batch'::text, 'funding'::text]))),
    CONSTRAINT transactions_located_iff_mined CHECK (((state = 'mined'::text) = ((hash IS NOT NULL) AND (succeeded IS NOT NULL) AND (block_number IS NOT NULL) AND (block_hash IS NOT NULL) AND (gas_used IS NOT NULL) AND (gas_price_wei IS NOT NULL)))),
    CONSTRAINT transactions_state_is_known CHECK ((state = ANY (ARRAY['signed'::text, 'mined'::text, 'lost'::text])))
);

COMMENT ON TABLE public.transactions IS 'one account nonce: its use and its result';

COMMENT ON COLUMN public.transactions.epoch IS 'epoch of the lane that wrote the nonce';

COMMENT ON COLUMN public.transactions.kind IS 'direct: one settlement; batch: several, by Multicall3, each of which may fail alone; funding: native currency for a payer''s approval';

COMMENT ON COLUMN public.transactions.state IS 'signed: its bytes are committed and may have been sent; mined: one of its attempts is in a canonical block; lost: a foreign transaction used the nonce';

COMMENT ON COLUMN public.transactions.hash IS 'the attempt that was mined';

COMMENT ON COLUMN public.transactions.succeeded IS 'status of the receipt; says nothing about single payments of a batch';

COMMENT ON COLUMN public.transactions.gas_price_wei IS 'effective price per gas';

COMMENT ON COLUMN public.transactions.further_fee_wei IS 'wei paid besides gas_used times gas_price_wei: a rollup''s fee for data, and unused gas where the limit is charged';

COMMENT ON COLUMN public.transactions.reserved_wei IS 'most that any of its attempts may cost, with the native currency that it transfers';

COMMENT ON COLUMN public.transactions.spent_wei IS 'what its last receipt says it cost, with the native currency that it transferred';

CREATE TABLE public.transfers (
    payment_id uuid NOT NULL,
    network text NOT NULL,
    hash bytea NOT NULL,
    account_nonce bigint NOT NULL,
    raw bytea,
    submitted_at timestamp with time zone DEFAULT now() NOT NULL,
    CONSTRAINT transfers_hash_has_32_bytes CHECK ((octet_length(hash) = 32)),
    CONSTRAINT transfers_raw_is_bounded CHECK (((octet_length(raw) >= 1) AND (octet_length(raw) <= 8192)))
);

COMMENT ON TABLE public.transfers IS 'one plain ERC-20 transfer that pays one session';

COMMENT ON COLUMN public.transfers.account_nonce IS 'the payer''s account nonce: once another transaction has used it, this one can never be mined';

COMMENT ON COLUMN public.transfers.raw IS 'signed bytes, when they were handed to us: written before they are sent';

CREATE TABLE public.verify_leases (
    payment_id uuid NOT NULL,
    lease_until timestamp with time zone NOT NULL
);

COMMENT ON TABLE public.verify_leases IS 'short leases of /verify, ended by the next /settle of the payment';

COMMENT ON COLUMN public.verify_leases.lease_until IS 'others may verify the payment after this time';

CREATE TABLE public.webhook_deliveries (
    id bigint NOT NULL,
    receiver_id uuid NOT NULL,
    message_id text NOT NULL,
    payment_id uuid NOT NULL,
    body text NOT NULL,
    state text DEFAULT 'waiting'::text NOT NULL,
    tries integer DEFAULT 0 NOT NULL,
    next_try_at timestamp with time zone DEFAULT now() NOT NULL,
    first_tried_at timestamp with time zone,
    created_at timestamp with time zone DEFAULT now() NOT NULL,
    ended_at timestamp with time zone,
    status integer,
    problem text,
    CONSTRAINT webhook_deliveries_end_with_a_time CHECK (((state = 'waiting'::text) = (ended_at IS NULL))),
    CONSTRAINT webhook_deliveries_state_is_known CHECK ((state = ANY (ARRAY['waiting'::text, 'delivered'::text, 'dead'::text])))
);

COMMENT ON TABLE public.webhook_deliveries IS 'what is sent to receivers, and what became of it';

COMMENT ON COLUMN public.webhook_deliveries.message_id IS 'id of the event or test, as the receiver sees it';

COMMENT ON COLUMN public.webhook_deliveries.payment_id IS 'those of one payment are sent one after the other; the nil UUID: none';

COMMENT ON COLUMN public.webhook_deliveries.state IS 'dead: given up after three days';

COMMENT ON COLUMN public.webhook_deliveries.next_try_at IS 'a process that sends it moves this, so that no other does for a while';

COMMENT ON COLUMN public.webhook_deliveries.status IS 'HTTP status of the last try';

ALTER TABLE public.webhook_deliveries ALTER COLUMN id ADD GENERATED ALWAYS AS IDENTITY (
    SEQUENCE NAME public.webhook_deliveries_id_seq
    START WITH 1
    INCREMENT BY 1
    NO MINVALUE
    NO MAXVALUE
    CACHE 1
);

CREATE TABLE public.webhook_receivers (
    id uuid NOT NULL,
    url text NOT NULL,
    types text NOT NULL,
    payee bytea,
    secret bytea NOT NULL,
    may_be_private boolean NOT NULL,
    position_xact xid8 NOT NULL,
    position_id bigint NOT NULL,
    created_at timestamp with time zone DEFAULT now() NOT NULL,
    CONSTRAINT webhook_receivers_payee_has_20_bytes CHECK ((octet_length(payee) = 20)),
    CONSTRAINT webhook_receivers_secret_has_32_bytes CHECK ((octet_length(secret) = 32)),
    CONSTRAINT webhook_receivers_types_are_short CHECK (((octet_length(types) >= 1) AND (octet_length(types) <= 1024))),
    CONSTRAINT webhook_receivers_url_is_http CHECK (((url ~ '^https?://'::text) AND (octet_length(url) <= 2048)))
);

COMMENT ON TABLE public.webhook_receivers IS 'URLs that events are sent to';

COMMENT ON COLUMN public.webhook_receivers.types IS 'names and groups of types, separated by commas';

COMMENT ON COLUMN public.webhook_receivers.payee IS 'only payments to this payee; null: everything';

COMMENT ON COLUMN public.webhook_receivers.secret IS 'key of the signatures; shown once, when the receiver is added';

COMMENT ON COLUMN public.webhook_receivers.may_be_private IS 'its host may have an address that is not public';

COMMENT ON COLUMN public.webhook_receivers.position_xact IS 'with position_id: the place in the feed up to which deliveries were written';

ALTER TABLE ONLY public.attempts
    ADD CONSTRAINT attempts_in_sequence UNIQUE (transaction_id, sequence);

ALTER TABLE ONLY public.attempts
    ADD CONSTRAINT attempts_pkey PRIMARY KEY (hash);

ALTER TABLE public.events
    ADD CONSTRAINT events_kind_is_known CHECK ((kind = ANY (ARRAY['state'::text, 'granted'::text, 'answered'::text, 'voided'::text, 'quarantined'::text, 'reorged'::text, 'signer.low'::text, 'signer.empty'::text, 'signer.stopped'::text, 'signer.paused'::text, 'signer.resumed'::text, 'network.down'::text, 'network.up'::text, 'budget.low'::text, 'budget.exhausted'::text, 'key.created'::text, 'key.revoked'::text]))) NOT VALID;

ALTER TABLE public.events
    ADD CONSTRAINT events_network_is_caip2 CHECK ((network ~ '^eip155:[1-9][0-9]*$'::text)) NOT VALID;

ALTER TABLE public.events
    ADD CONSTRAINT events_of_no_payment_have_the_nil_id CHECK (((payment_id = '00000000-0000-0000-0000-000000000000'::uuid) = (kind ~~ '%.%'::text))) NOT VALID;

ALTER TABLE ONLY public.events
    ADD CONSTRAINT events_pkey PRIMARY KEY (payment_id, id);

ALTER TABLE public.events
    ADD CONSTRAINT events_signer_has_20_bytes CHECK ((octet_length(signer) = 20)) NOT VALID;

ALTER TABLE ONLY public.foreign_nonces
    ADD CONSTRAINT foreign_nonces_pkey PRIMARY KEY (network, signer, nonce);

ALTER TABLE ONLY public.fundings
    ADD CONSTRAINT fundings_one_per_payment PRIMARY KEY (payment_id);

ALTER TABLE ONLY public.gas_reservations
    ADD CONSTRAINT gas_reservations_pkey PRIMARY KEY (transaction_id, scope, subject);

ALTER TABLE ONLY public.gas_spending
    ADD CONSTRAINT gas_spending_pkey PRIMARY KEY (network, scope, subject, hour);

ALTER TABLE ONLY public.grants
    ADD CONSTRAINT grants_one_per_payment PRIMARY KEY (payment_id);

ALTER TABLE ONLY public.keys
    ADD CONSTRAINT keys_pkey PRIMARY KEY (id);

ALTER TABLE ONLY public.lanes
    ADD CONSTRAINT lanes_pkey PRIMARY KEY (network, signer);

ALTER TABLE ONLY public.levels
    ADD CONSTRAINT levels_pkey PRIMARY KEY (topic, network, subject);

ALTER TABLE ONLY public.networks
    ADD CONSTRAINT networks_pkey PRIMARY KEY (network);

ALTER TABLE ONLY public.payer_accounts
    ADD CONSTRAINT payer_accounts_pkey PRIMARY KEY (network, asset, payer);

ALTER TABLE ONLY public.payment_transitions
    ADD CONSTRAINT payment_transitions_pkey PRIMARY KEY (from_state, to_state);

ALTER TABLE ONLY public.payments
    ADD CONSTRAINT payments_one_per_authorization UNIQUE (nonce, payer, nonce_domain, network);

ALTER TABLE ONLY public.payments
    ADD CONSTRAINT payments_one_per_log UNIQUE (transaction_hash, log_index, network);

ALTER TABLE ONLY public.payments
    ADD CONSTRAINT payments_pkey PRIMARY KEY (id);

ALTER TABLE ONLY public.processes
    ADD CONSTRAINT processes_pkey PRIMARY KEY (id);

ALTER TABLE ONLY public.refusals
    ADD CONSTRAINT refusals_pkey PRIMARY KEY (id);

ALTER TABLE ONLY public.sessions
    ADD CONSTRAINT sessions_one_per_nonce UNIQUE (nonce);

ALTER TABLE ONLY public.sessions
    ADD CONSTRAINT sessions_one_per_payment UNIQUE (payment_id);

ALTER TABLE ONLY public.sessions
    ADD CONSTRAINT sessions_pkey PRIMARY KEY (id);

ALTER TABLE ONLY public.suspensions
    ADD CONSTRAINT suspensions_pkey PRIMARY KEY (network, kind, subject);

ALTER TABLE ONLY public.transaction_payments
    ADD CONSTRAINT transaction_payments_pkey PRIMARY KEY (transaction_id, "position");

ALTER TABLE ONLY public.transactions
    ADD CONSTRAINT transactions_one_per_nonce UNIQUE (network, signer, nonce);

ALTER TABLE ONLY public.transactions
    ADD CONSTRAINT transactions_pkey PRIMARY KEY (id);

ALTER TABLE ONLY public.transfers
    ADD CONSTRAINT transfers_one_per_transaction UNIQUE (network, hash);

ALTER TABLE ONLY public.transfers
    ADD CONSTRAINT transfers_pkey PRIMARY KEY (payment_id);

ALTER TABLE ONLY public.verify_leases
    ADD CONSTRAINT verify_leases_one_per_payment PRIMARY KEY (payment_id);

ALTER TABLE ONLY public.webhook_deliveries
    ADD CONSTRAINT webhook_deliveries_one_per_message UNIQUE (receiver_id, message_id);

ALTER TABLE ONLY public.webhook_deliveries
    ADD CONSTRAINT webhook_deliveries_pkey PRIMARY KEY (id);

ALTER TABLE ONLY public.webhook_receivers
    ADD CONSTRAINT webhook_receivers_pkey PRIMARY KEY (id);

CREATE INDEX events_in_order ON public.events USING btree (xact, id) WHERE (xact IS NOT NULL);

CREATE INDEX foreign_nonces_recent ON public.foreign_nonces USING btree (network, signer, found_at);

CREATE INDEX fundings_of_a_day ON public.fundings USING btree (network, created_at) INCLUDE (payer, wei);

CREATE INDEX gas_spending_by_hour ON public.gas_spending USING btree (hour);

CREATE UNIQUE INDEX keys_one_live_per_name ON public.keys USING btree (name) WHERE (revoked_at IS NULL);

CREATE INDEX payments_by_amount ON public.payments USING btree (amount, created_at, id);

CREATE INDEX payments_by_asset ON public.payments USING btree (asset, network, created_at, id);

CREATE INDEX payments_by_payee ON public.payments USING btree (payee, created_at, id);

CREATE INDEX payments_by_payer ON public.payments USING btree (payer, created_at, id);

CREATE INDEX payments_by_resource ON public.payments USING btree (hashtextextended(resource, (0)::bigint), created_at, id) WHERE (resource IS NOT NULL);

CREATE INDEX payments_by_state ON public.payments USING btree (state, created_at, id);

CREATE INDEX payments_by_time ON public.payments USING btree (created_at, id) INCLUDE (network, asset, payer, payee, amount, state);

CREATE INDEX payments_given_up ON public.payments USING btree (network, valid_before, id) WHERE ((rail = 'authorization'::text) AND (state = ANY (ARRAY['refused'::text, 'failed'::text])) AND (quarantined_at IS NULL));

CREATE INDEX payments_open_transfers ON public.payments USING btree (network, id) WHERE ((rail = 'transfer'::text) AND (state = 'inflight'::text));

CREATE INDEX payments_promised_at_permit2 ON public.payments USING btree (payer, asset, network) WHERE ((permitted IS NOT NULL) AND (state = ANY (ARRAY['queued'::text, 'inflight'::text])));

CREATE INDEX payments_quarantined ON public.payments USING btree (created_at) WHERE (quarantined_at IS NOT NULL);

CREATE INDEX payments_unclaimed ON public.payments USING btree (network, queued_at) WHERE ((state = 'queued'::text) AND (queued_by IS NULL));

CREATE INDEX payments_unfinal ON public.payments USING btree (network, block_number) WHERE (state = ANY (ARRAY['mined'::text, 'settled'::text, 'late_settled'::text]));

CREATE INDEX payments_waiting ON public.payments USING btree (network, queued_at) WHERE (state = 'queued'::text);

CREATE INDEX sessions_by_client_reference ON public.sessions USING btree (client_reference, payment_id) INCLUDE (id) WHERE ((client_reference IS NOT NULL) AND (payment_id IS NOT NULL));

CREATE INDEX sessions_open_by_client ON public.sessions USING btree (client, created_at) WHERE ((state = 'open'::text) AND (payment_id IS NULL));

CREATE INDEX sessions_open_by_expiry ON public.sessions USING btree (expires_at) WHERE ((state = 'open'::text) AND (payment_id IS NULL));

CREATE INDEX sessions_without_payment ON public.sessions USING btree (created_at) WHERE (payment_id IS NULL);

CREATE INDEX suspensions_by_end ON public.suspensions USING btree (network, suspended_until);

CREATE INDEX transaction_payments_by_payment ON public.transaction_payments USING btree (payment_id);

CREATE UNIQUE INDEX transaction_payments_one_live_per_payment ON public.transaction_payments USING btree (payment_id) WHERE (outcome IS NULL);

CREATE INDEX transactions_by_block ON public.transactions USING btree (network, block_number) WHERE (state = 'mined'::text);

CREATE INDEX transactions_unmined ON public.transactions USING btree (network, signer, nonce) WHERE (state = 'signed'::text);

CREATE INDEX webhook_deliveries_dead ON public.webhook_deliveries USING btree (receiver_id) WHERE (state = 'dead'::text);

CREATE INDEX webhook_deliveries_due ON public.webhook_deliveries USING btree (receiver_id, next_try_at) WHERE (state = 'waiting'::text);

CREATE INDEX webhook_deliveries_waiting ON public.webhook_deliveries USING btree (receiver_id, payment_id, id) WHERE (state = 'waiting'::text);

CREATE STATISTICS public.payments_columns_go_together (dependencies, mcv) ON network, asset, payee, state FROM public.payments;

CREATE TRIGGER keys_every_creation_is_recorded AFTER INSERT ON public.keys FOR EACH ROW EXECUTE FUNCTION public.keys_tell();

CREATE TRIGGER keys_every_revocation_is_recorded AFTER UPDATE OF revoked_at ON public.keys FOR EACH ROW WHEN (((old.revoked_at IS NULL) AND (new.revoked_at IS NOT NULL))) EXECUTE FUNCTION public.keys_tell();

CREATE TRIGGER lanes_every_stop_and_pause_is_recorded AFTER UPDATE OF stopped_reason, paused_at, draining ON public.lanes FOR EACH ROW WHEN ((((old.stopped_reason IS NULL) IS DISTINCT FROM (new.stopped_reason IS NULL)) OR ((old.paused_at IS NULL) IS DISTINCT FROM (new.paused_at IS NULL)) OR (old.draining IS DISTINCT FROM new.draining))) EXECUTE FUNCTION public.lanes_tell();

CREATE TRIGGER levels_every_change_is_recorded AFTER INSERT OR UPDATE OF level ON public.levels FOR EACH ROW EXECUTE FUNCTION public.levels_tell();

CREATE TRIGGER payments_every_beginning_is_recorded AFTER INSERT ON public.payments REFERENCING NEW TABLE AS begun FOR EACH STATEMENT EXECUTE FUNCTION public.payments_begin();

CREATE TRIGGER payments_every_transition_is_recorded AFTER UPDATE ON public.payments REFERENCING OLD TABLE AS was NEW TABLE AS now_is FOR EACH STATEMENT EXECUTE FUNCTION public.payments_move();

CREATE TRIGGER payments_updates_are_dated BEFORE UPDATE ON public.payments FOR EACH ROW EXECUTE FUNCTION public.payments_touch();

CREATE TRIGGER transaction_payments_ride_with_their_signer AFTER INSERT ON public.transaction_payments REFERENCING NEW TABLE AS riding FOR EACH STATEMENT EXECUTE FUNCTION public.transaction_payments_are_of_its_signer();

ALTER TABLE ONLY public.attempts
    ADD CONSTRAINT attempts_belong_to_a_transaction FOREIGN KEY (transaction_id) REFERENCES public.transactions(id);

ALTER TABLE ONLY public.foreign_nonces
    ADD CONSTRAINT foreign_nonces_belong_to_a_lane FOREIGN KEY (network, signer) REFERENCES public.lanes(network, signer);

ALTER TABLE ONLY public.fundings
    ADD CONSTRAINT fundings_belong_to_a_payment FOREIGN KEY (payment_id) REFERENCES public.payments(id);

ALTER TABLE ONLY public.fundings
    ADD CONSTRAINT fundings_belong_to_a_transaction FOREIGN KEY (transaction_id) REFERENCES public.transactions(id);

ALTER TABLE ONLY public.gas_reservations
    ADD CONSTRAINT gas_reservations_belong_to_a_transaction FOREIGN KEY (transaction_id) REFERENCES public.transactions(id);

ALTER TABLE ONLY public.grants
    ADD CONSTRAINT grants_belong_to_a_payment FOREIGN KEY (payment_id) REFERENCES public.payments(id);

ALTER TABLE ONLY public.grants
    ADD CONSTRAINT grants_belong_to_a_process FOREIGN KEY (process_id) REFERENCES public.processes(id);

ALTER TABLE ONLY public.lanes
    ADD CONSTRAINT lanes_owned_by_a_process FOREIGN KEY (owner) REFERENCES public.processes(id);

ALTER TABLE ONLY public.sessions
    ADD CONSTRAINT sessions_belong_to_a_payment FOREIGN KEY (payment_id) REFERENCES public.payments(id);

ALTER TABLE ONLY public.transaction_payments
    ADD CONSTRAINT transaction_payments_belong_to_a_payment FOREIGN KEY (payment_id) REFERENCES public.payments(id);

ALTER TABLE ONLY public.transaction_payments
    ADD CONSTRAINT transaction_payments_belong_to_a_transaction FOREIGN KEY (transaction_id) REFERENCES public.transactions(id);

ALTER TABLE ONLY public.transactions
    ADD CONSTRAINT transactions_belong_to_a_lane FOREIGN KEY (network, signer) REFERENCES public.lanes(network, signer);

ALTER TABLE ONLY public.transfers
    ADD CONSTRAINT transfers_belong_to_a_payment FOREIGN KEY (payment_id) REFERENCES public.payments(id);

ALTER TABLE ONLY public.verify_leases
    ADD CONSTRAINT verify_leases_belong_to_a_payment FOREIGN KEY (payment_id) REFERENCES public.payments(id);

ALTER TABLE ONLY public.webhook_deliveries
    ADD CONSTRAINT webhook_deliveries_of_a_receiver FOREIGN KEY (receiver_id) REFERENCES public.webhook_receivers(id) ON DELETE CASCADE;


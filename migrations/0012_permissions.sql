-- Payments by Permit2: scheme exact for tokens without EIP-3009, and scheme upto, where the seller says how much is charged.
alter table payments
    add column permitted numeric(78, 0),
    add column allowance_permit bytea,
    add column allowance_approval bytea,
    drop constraint payments_scheme_is_known,
    drop constraint payments_amount_is_positive_uint256,
    drop constraint payments_located_iff_money_moved,
    add constraint payments_scheme_is_known check (scheme in ('exact', 'upto')),
    add constraint payments_amount_is_uint256 check (amount >= 0 and amount < 2::numeric ^ 256 and (amount > 0 or scheme = 'upto')),
    add constraint payments_permitted_is_uint256 check (permitted > 0 and permitted < 2::numeric ^ 256),
    add constraint payments_amount_is_permitted check (amount <= permitted and (scheme = 'upto' or amount = permitted)),
    add constraint payments_permitted_at_permit2 check (
        permitted is null or nonce_domain = '\x000000000022d473030f116ddee9f6b43ac78ba3'
    ),
    add constraint payments_upto_names_its_signer check (
        (scheme = 'upto') = (signer is not null) and (scheme = 'exact' or permitted is not null)
    ),
    add constraint payments_allowance_is_for_permit2 check (
        (allowance_permit is null or allowance_approval is null)
        and (permitted is not null or (allowance_permit is null and allowance_approval is null))
    ),
    add constraint payments_allowance_permit_has_97_bytes check (octet_length(allowance_permit) = 97),
    add constraint payments_allowance_approval_is_bounded check (octet_length(allowance_approval) between 1 and 8192),
    add constraint payments_nothing_is_never_sent check (amount > 0 or state not in ('queued', 'inflight', 'mined', 'late_settled')),
    -- The one settled payment without a transaction: the seller charged nothing.
    add constraint payments_located_iff_money_moved check (
        (state in ('mined', 'settled', 'final', 'late_settled') and amount > 0)
        = (transaction_hash is not null and log_index is not null and block_number is not null and block_hash is not null)
    );

comment on column payments.scheme is 'exact: all that was permitted; upto: what the seller charged of it';
comment on column payments.amount is 'atomic units of the asset that are to be moved; in upto what was charged, 0 included';
comment on column payments.permitted is 'Permit2: the most that the payer signed; null for EIP-3009 and for transfers';
comment on column payments.nonce_domain is 'contract in which the nonce is used up: the token for EIP-3009, Permit2; zero for a transfer, whose nonce is its session''s';
comment on column payments.allowance_permit is 'what the payer signed so that Permit2 may take its token (EIP-2612): deadline (32 bytes), signature (65)';
comment on column payments.allowance_approval is 'the same as a signed transaction of the payer''s';

-- What a payer has promised to pay by Permit2.
create index payments_promised_at_permit2 on payments (payer, asset, network)
    where permitted is not null and state in ('queued', 'inflight');

-- Sellers read once, when they start, what may be asked for here; it must not depend on whether an RPC answers just then.
alter table networks
    add column exact_proxy boolean not null default false,
    add column upto_proxy boolean not null default false;

comment on column networks.exact_proxy is 'Permit2 and the proxy of scheme exact had code when the chain was last asked';
comment on column networks.upto_proxy is 'Permit2 and the proxy of scheme upto had code when the chain was last asked';

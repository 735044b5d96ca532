-- A nonce may be taken by a transaction that is not ours: then its bytes can never be mined, and what rode in them goes on elsewhere.
alter table transactions
    drop constraint transactions_state_is_known,
    add constraint transactions_state_is_known check (state in ('signed', 'mined', 'lost'));

comment on column transactions.state is 'signed: its bytes are committed and may be on their way; mined: one of its attempts is in a canonical block; lost: a transaction that is not ours has used the nonce';
comment on column lanes.stopped_reason is 'set when the lane must write no new nonce without the operator, for instance after foreign use of its key; what it has sent is still followed';

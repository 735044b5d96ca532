-- A migration of its own: while the index is built over the whole history, no payment can be written, and lanes must stay free meanwhile.

-- The operator asks for the quarantined payments, of which there are few in a long history.
create index payments_quarantined on payments (created_at) where quarantined_at is not null;

-- By itself, because the index is built over the whole history: what is locked meanwhile is written by nobody but acceptance.

-- The operator asks for the quarantined payments, of which there are few in a long history.
create index payments_quarantined on payments (created_at) where quarantined_at is not null;

-- Payments are looked up by their nonce first. With the payer further ahead, a plan that is made while the ledger is young may read
-- all payments of a payer through payments_by_payer instead, for as long as the plan lives.
alter table payments drop constraint payments_one_per_authorization;
alter table payments add constraint payments_one_per_authorization unique (nonce, payer, nonce_domain, network);

-- With the hash ahead, this index finds payments by their transaction as well: one index less to write at every step of a payment.
alter table payments drop constraint payments_one_per_log;
alter table payments add constraint payments_one_per_log unique (transaction_hash, log_index, network);
drop index payments_by_transaction;

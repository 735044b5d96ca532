-- Payments are looked up by their nonce first. With the payer further ahead, a plan that is made while the ledger is young may read
-- all payments of a payer through payments_by_payer instead, for as long as the plan lives.
alter table payments drop constraint payments_one_per_authorization;
alter table payments add constraint payments_one_per_authorization unique (nonce, payer, nonce_domain, network);

-- What a transaction costs is more than gas times price on some chains: rollups take a fee for publishing its data, and some chains
-- charge the whole gas limit.
alter table transactions add column further_fee_wei numeric(78, 0) not null default 0;

comment on column transactions.further_fee_wei is 'wei paid besides gas_used times gas_price_wei: what a rollup takes for data, and unused gas where the limit is charged';

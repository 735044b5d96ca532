-- Some payments name the one signer that may settle them: their payer has signed its address.
alter table payments add column signer bytea;
alter table payments add constraint payments_signer_has_20_bytes check (octet_length(signer) = 20);

comment on column payments.signer is 'the only signer that may settle it, because its payer signed that address; null: any';

create function transaction_payments_are_of_its_signer() returns trigger language plpgsql as $$
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

create trigger transaction_payments_ride_with_their_signer after insert on transaction_payments
    referencing new table as riding for each statement execute function transaction_payments_are_of_its_signer();

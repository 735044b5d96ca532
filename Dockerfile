# x402d and nothing else: the ledger is a Postgres server named by DATABASE_URL.
FROM rust:1.95.0-bookworm AS build
WORKDIR /src
COPY . .
ENV SQLX_OFFLINE=true
RUN cargo build --release --locked --features aws

FROM debian:12.9-slim
RUN apt-get update \
    && apt-get install -y --no-install-recommends ca-certificates curl \
    && rm -rf /var/lib/apt/lists/* \
    && useradd --system --no-create-home x402d
COPY --from=build /src/target/release/x402d /usr/local/bin/x402d
USER x402d
ENV X402D_LISTEN=0.0.0.0:4402
EXPOSE 4402
HEALTHCHECK CMD curl -fsS http://127.0.0.1:4402/healthz || exit 1
ENTRYPOINT ["x402d"]
CMD ["serve"]

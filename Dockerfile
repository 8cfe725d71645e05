# Never built where it was written: no container engine was at hand. Nor was the static build by itself.
FROM rust:1.95-bookworm AS build
WORKDIR /src
COPY . .
ENV RUSTFLAGS="-C target-feature=+crt-static"
RUN cargo build --release --locked --bin stockade --target x86_64-unknown-linux-gnu

FROM scratch
COPY --from=build /src/target/x86_64-unknown-linux-gnu/release/stockade /stockade
USER 65532:65532
ENTRYPOINT ["/stockade"]
CMD ["serve", "--config", "/etc/stockade/stockade.yaml"]

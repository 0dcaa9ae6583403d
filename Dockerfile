# The daemon and its client in a small image. From the root of the repository:
#   docker build -t codecached --build-arg REVISION="$(git rev-parse HEAD)" .
#   docker run --rm --read-only --cap-drop=ALL --security-opt no-new-privileges \
#       --security-opt seccomp=deploy/seccomp/thread.docker.json -v codecached:/run/codecached codecached
# With exec.isolation = process: deploy/seccomp/process.docker.json. Clients reach it by the socket in the volume. deploy/README.md has the rest.

# Where it is built: Rust 1.88 or later, and a C compiler to link with.
ARG BUILDER=rust:1.88-slim-bookworm
# Where it runs: glibc no older than the builder's, and libgcc_s.
ARG BASE=debian:bookworm-slim

FROM ${BUILDER} AS build
# Of cargo. "true": everything that Cargo.lock names is in $CARGO_HOME already.
ARG CARGO_NET_OFFLINE=false
WORKDIR /src
# The dependencies are a layer of their own, built anew only if Cargo.toml or Cargo.lock changes: with empty sources, and
# without the tests and benches that Cargo.toml names.
COPY Cargo.toml Cargo.lock ./
RUN mkdir -p src/bin/codecachectl \
    && echo 'fn main() {}' | tee src/main.rs src/bin/codecachectl/main.rs >build.rs \
    && touch src/lib.rs \
    && awk '/^\[/ { skipped = /^\[\[(test|bench)\]\]/ } !skipped' Cargo.toml >Cargo.toml.bins \
    && mv Cargo.toml.bins Cargo.toml \
    && cargo build --release --locked
COPY build.rs ./
COPY proto proto
COPY src src
# `codecached --version` and codecache_build_info tell it. Behind the dependencies, as it differs each time.
ARG REVISION=unknown
# Newer than the empty ones, which is what cargo goes by.
RUN find src proto build.rs -exec touch {} + \
    && CODECACHED_REVISION="$REVISION" cargo build --release --locked \
    && for name in codecached codecachectl; do \
        install -D -m 0755 "target/release/$name" "/out/$name" && strip --strip-debug "/out/$name"; \
    done

FROM ${BASE}
ARG REVISION=unknown
ARG VERSION=0.1.0
LABEL org.opencontainers.image.title="codecached" \
    org.opencontainers.image.description="A code-cache daemon: installs, finds, runs and evicts native code under a hard memory budget" \
    org.opencontainers.image.licenses="MIT OR Apache-2.0" \
    org.opencontainers.image.version="${VERSION}" \
    org.opencontainers.image.revision="${REVISION}"
# The one place that is written to. A volume, so that a read-only root is no hindrance.
RUN install -d -m 0750 -o 65532 -g 65532 /run/codecached
VOLUME /run/codecached
COPY --from=build /out/codecached /out/codecachectl /usr/local/bin/
USER 65532:65532
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=10s --timeout=5s --start-period=5s --retries=3 CMD ["codecachectl", "health", "--timeout", "3s"]
ENTRYPOINT ["codecached"]
CMD ["serve"]

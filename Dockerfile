# One image for all programs: herald, herald-dispatcher, herald-operator. docker build -t localhost/herald:dev .
#
# No shell, no package manager, nobody's rights: a C library, certificates, time zones and a user beside the programs. All of
# it comes from the builder, so that C libraries agree. BUILDER is any Debian with Rust; PROFILE=dev builds in a third of the time.
# `make test-image` builds it and looks into what comes out.
ARG BUILDER=rust:1.95-bookworm

FROM ${BUILDER} AS build
RUN command -v protoc >/dev/null || { apt-get update \
    && apt-get install --yes --no-install-recommends protobuf-compiler \
    && rm -rf /var/lib/apt/lists/*; }
WORKDIR /src
COPY . .
ARG PROFILE=release
# The caches belong to the builder and are not part of the layer, so what is kept is copied out of them. What they hold may
# have been built later from other sources than these were written: Cargo, which compares times, has to see that these are
# new. What it would note for compiling the same crates in parts is as large as all the rest.
RUN --mount=type=cache,target=/usr/local/cargo/registry --mount=type=cache,target=/src/target \
    find crds dispatcher operator -name '*.rs' -exec touch {} + \
    && CARGO_INCREMENTAL=0 cargo build --locked --profile "$PROFILE" --package herald-dispatcher --package herald-operator \
        --features herald-dispatcher/pulsar,herald-dispatcher/postgres,herald-dispatcher/kubernetes,herald-operator/kubernetes --bins \
    && case "$PROFILE" in dev) folder=debug ;; *) folder=$PROFILE ;; esac \
    && cd "target/$folder" \
    && install --strip -D --target-directory /programs herald herald-dispatcher herald-operator

# What the programs need of Debian, unpacked but not installed: nothing runs in it. Scanners read which packages and versions
# these are from status.d.
FROM ${BUILDER} AS base
WORKDIR /packages
RUN apt-get update \
    && apt-get download base-files ca-certificates libc6 libgcc-s1 netbase tzdata \
        $(dpkg-query --show --showformat '${Package} ' 'gcc-*-base') \
    && mkdir --parents /root-of-image/var/lib/dpkg/status.d \
    && cd /root-of-image \
    && for package in /packages/*.deb; do \
        name=$(dpkg-deb --field "$package" Package) \
        && dpkg-deb --extract "$package" . \
        && dpkg-deb --field "$package" >"var/lib/dpkg/status.d/$name" \
        && dpkg-deb --ctrl-tarfile "$package" | tar --extract --to-stdout ./md5sums >"var/lib/dpkg/status.d/$name.md5sums" \
        || exit 1; \
    done \
    && find usr/share/ca-certificates -name '*.crt' -exec cat {} + >etc/ssl/certs/ca-certificates.crt \
    && echo 'root:x:0:0:root:/root:/sbin/nologin' >etc/passwd \
    && echo 'nonroot:x:65532:65532:nonroot:/home/nonroot:/sbin/nologin' >>etc/passwd \
    && echo 'root:x:0:' >etc/group \
    && echo 'nonroot:x:65532:' >>etc/group \
    && echo 'hosts: files dns' >etc/nsswitch.conf \
    && install --directory --owner 65532 --group 65532 --mode 700 home/nonroot \
    && install --directory --mode 1777 tmp \
    # Scripts that nothing here can run, character sets that nobody converts from, and what is read by people elsewhere.
    && rm -rf usr/sbin/update-ca-certificates etc/ca-certificates etc/update-motd.d \
        usr/lib/*/gconv usr/share/man usr/share/lintian \
    && find usr/share/doc -type f ! -name copyright -delete

FROM scratch
LABEL org.opencontainers.image.title="herald" \
      org.opencontainers.image.description="Notifications declared as YAML, sent with one HTTP request" \
      org.opencontainers.image.licenses="Apache-2.0"
COPY --from=base /root-of-image/ /
COPY --from=build /programs/ /usr/bin/
ENV PATH=/usr/bin
WORKDIR /home/nonroot
# By number, so that Kubernetes can see that it is not root.
USER 65532:65532
EXPOSE 8080 9090
ENTRYPOINT ["/usr/bin/herald"]

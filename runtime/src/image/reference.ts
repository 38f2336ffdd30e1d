import { RuntimeError } from "@bulkhead/lib/std/errors.ts";

/** An image reference with every default filled in. At least one of tag and digest is there. */
export type Reference = {
  /** Host and port of the registry, as written: docker.io, localhost:5000, [::1]:5000. */
  domain: string;
  /** Path of the repository in the registry: library/busybox. */
  path: string;
  tag?: string;
  digest?: string;
};

const component = "[a-z0-9]+(?:(?:\\.|_|__|-+)[a-z0-9]+)*";
const pathPattern = new RegExp(`^${component}(?:/${component})*$`);
const label = "(?:[a-zA-Z0-9]|[a-zA-Z0-9][a-zA-Z0-9-]*[a-zA-Z0-9])";
const domainPattern = new RegExp(`^(?:${label}(?:\\.${label})*|\\[[a-fA-F0-9:]+\\])(?::[0-9]+)?$`);
const tagPattern = /^[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}$/;
const digestPattern = /^(?:sha256:[a-f0-9]{64}|sha512:[a-f0-9]{128})$/;
const bareId = /^[a-f0-9]{64}$/;

/** The longest name (domain and path) that registries accept. */
const maxName = 255;
/** A name, a tag and the longest digest with their separators: nothing longer is looked at. */
const maxReference = maxName + 1 + 128 + 1 + 135;

/** True for a digest of an algorithm that Bulkhead can check. */
export const isDigest = (text: string): boolean => digestPattern.test(text);

/**
 * Parses an image reference by the grammar of the distribution specification, with the defaults that users of
 * Docker expect: `busybox` is docker.io/library/busybox:latest. A reference with a tag and a digest names what the
 * digest names; the tag is dropped, as by containerd.
 */
export const parseReference = (text: string): Reference => {
  const invalid = (why: string): RuntimeError =>
    new RuntimeError(
      "invalid-argument",
      `Invalid image reference ${JSON.stringify(text.slice(0, 200))}: ${why}`,
    );
  if (text === "") throw invalid("it is empty");
  if (text.length > maxReference) throw invalid("it is too long");
  if (bareId.test(text)) throw invalid("64 hexadecimal digits are an image ID, not a name");

  const at = text.indexOf("@");
  const digest = at < 0 ? undefined : text.slice(at + 1);
  if (digest !== undefined && !isDigest(digest)) throw invalid("the digest is not sha256:… or sha512:…");
  const named = at < 0 ? text : text.slice(0, at);

  const colon = named.lastIndexOf(":");
  const tagged = colon > named.lastIndexOf("/");
  const tag = tagged ? named.slice(colon + 1) : undefined;
  if (tag !== undefined && !tagPattern.test(tag)) throw invalid("the tag is not valid");

  const { domain, path } = splitDomain(tagged ? named.slice(0, colon) : named);
  if (!domainPattern.test(domain)) throw invalid("the registry is not a host name");
  if (!pathPattern.test(path)) {
    throw invalid(
      /[A-Z]/.test(path) ? "the repository must be lowercase" : "the repository name is not valid",
    );
  }
  if (domain.length + 1 + path.length > maxName)
    throw invalid(`the name is longer than ${maxName} characters`);
  return digest === undefined ? { domain, path, tag: tag ?? "latest" } : { domain, path, digest };
};

/** The first part of a name is a registry only when it cannot be a repository's: it has a dot, a port or capitals. */
const splitDomain = (name: string): { domain: string; path: string } => {
  const slash = name.indexOf("/");
  const first = slash < 0 ? "" : name.slice(0, slash);
  const isDomain = first !== "" && (/[.:[]/.test(first) || first === "localhost" || /[A-Z]/.test(first));
  const domain = isDomain ? (first === "index.docker.io" ? "docker.io" : first) : "docker.io";
  const path = isDomain ? name.slice(slash + 1) : name;
  return { domain, path: domain === "docker.io" && !path.includes("/") ? `library/${path}` : path };
};

/** registry/path, without tag and digest. */
export const nameOf = (reference: Reference): string => `${reference.domain}/${reference.path}`;

/** The whole reference in its normal form; parsing it again gives the same. */
export const formatReference = (reference: Reference): string =>
  reference.digest === undefined
    ? `${nameOf(reference)}:${reference.tag ?? "latest"}`
    : `${nameOf(reference)}@${reference.digest}`;

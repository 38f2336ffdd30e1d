/**
 * Where a list goes on, by a Link header with rel="next" (RFC 8288; distribution-spec, "Listing Referrers"): `resource`
 * with the query of that link. Of the link nothing else is believed: it may lead anywhere.
 */
export const nextPage = (header: string | undefined, resource: string): string | undefined => {
  const [, target = ""] =
    /<([^<>\s]{1,4096})>\s*;[^<]{0,256}?\brel\s*=\s*"?next\b/i.exec(header?.slice(0, 16_384) ?? "") ?? [];
  const query = target.slice(target.indexOf("?"));
  return target === "" || !query.startsWith("?") || query.includes("#") ? undefined : `${resource}${query}`;
};

import { expect, test } from "vitest";
import { sourceStanzas } from "./programs.ts";

test("sourceStanzas() makes source entries of Debian's archives, in both formats of apt", () => {
  const stanzas = `Types: deb
# a snapshot
URIs: http://deb.debian.org/debian
Suites: bookworm bookworm-updates
Components: main
Signed-By: /usr/share/keyrings/debian-archive-keyring.gpg

Types: deb
URIs: https://deb.nodesource.com/node_20.x
Suites: nodistro
Components: main
`;
  expect(sourceStanzas(stanzas, false)).toEqual([
    `Types: deb-src
URIs: http://deb.debian.org/debian
Suites: bookworm bookworm-updates
Components: main
Signed-By: /usr/share/keyrings/debian-archive-keyring.gpg`,
  ]);
  const lines = `# deb http://deb.debian.org/debian sid main
deb [signed-by=/k.gpg arch=amd64] http://security.debian.org/debian-security bookworm-security main contrib
deb https://packages.cloud.google.com/apt cloud-sdk main
`;
  expect(sourceStanzas(lines, true)).toEqual([
    `Types: deb-src
URIs: http://security.debian.org/debian-security
Suites: bookworm-security
Components: main contrib
Signed-By: /k.gpg`,
  ]);
});

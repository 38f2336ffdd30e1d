import fc from "fast-check";
import { describe, expect, test } from "vitest";
import { ArtifactTree, partsOf } from "./tree.ts";

const at = (path: string): string[] => path.split("/");
const tree = (build: (tree: ArtifactTree) => void): ArtifactTree => {
  const made = new ArtifactTree();
  build(made);
  return made;
};

describe("the files of an artifact", () => {
  test("are laid out in order, programs executable, folders as the paths need them", () => {
    const { files, links } = tree((t) => {
      t.file(at("share/data"), 1, 10, false);
      t.file(at("bin/runsc"), 2, 20, false);
      t.file(at("libexec/virtiofsd"), 3, 30, true);
      t.link(at("bin/gvisor"), "runsc");
    }).layout("", undefined);
    expect(files.map(({ path, content, mode }) => [path, content, mode])).toEqual([
      ["bin/runsc", 2, 0o755],
      ["libexec/virtiofsd", 3, 0o755],
      ["share/data", 1, 0o644],
    ]);
    expect(links).toEqual([{ path: "bin/gvisor", target: "runsc" }]);
  });

  test("of a later layer replace and hide those of earlier ones, never its own", () => {
    const t = tree((t) => {
      t.file(at("bin/old"), 1, 1, true);
      t.file(at("share/a/x"), 2, 1, false);
      t.file(at("share/b/x"), 3, 1, false);
      t.nextLayer();
      t.file(at("share/a/y"), 4, 1, false);
      t.whiteout(at("bin/old"));
      t.opaque(at("share/a"));
      t.file(at("share/b"), 5, 1, false);
    });
    expect(t.layout("", undefined).files.map(({ path }) => path)).toEqual(["share/a/y", "share/b"]);
  });

  test("a hard link is another name of a file that came before", () => {
    const t = tree((t) => {
      t.file(at("bin/a"), 7, 1, true);
      t.hardLink(at("bin/b"), at("bin/a"));
    });
    expect(t.layout("", undefined).files.map(({ content }) => content)).toEqual([7, 7]);
    t.hardLink(at("bin/c"), at("etc/shadow"));
    expect(() => t.layout("", undefined)).toThrow('"bin/c" is a hard link to "etc/shadow", which is no file');
  });

  test("a refused entry counts only where it would be taken", () => {
    const t = tree((t) => {
      t.refuse(at("bin/su"), "is setuid");
      t.file(at("opt/kata/bin/shim"), 1, 1, true);
    });
    expect(t.layout("opt/kata", "/opt/kata").files.map(({ path }) => path)).toEqual(["bin/shim"]);
    expect(() => t.layout("", undefined)).toThrow('"bin/su" is setuid');
  });

  test("nothing lies below a symbolic link", () => {
    const t = tree((t) => {
      t.link(at("share"), "bin");
      t.file(at("share/x"), 1, 1, false);
    });
    expect(() => t.layout("", undefined)).toThrow('"share/x" lies below a symbolic link');
  });
});

describe("symbolic links of an artifact", () => {
  const linked = (links: Record<string, string>, home?: string) =>
    tree((t) => {
      t.file(at("a/b/c/file"), 1, 1, false);
      for (const [path, target] of Object.entries(links)) t.link(at(path), target);
    }).layout("", home).links;

  test("stay as they are inside, and dangling ones too", () => {
    expect(linked({ "a/l": "b/../b/c", m: "a/none" })).toHaveLength(2);
  });

  test("are refused when they lead out, at once or by way of each other", () => {
    for (const links of [
      { l: "/etc/passwd" },
      { l: ".." },
      { "a/l": "../../etc" },
      // By its letters a/r/.. is a; but r is the root.
      { "a/r": "..", l: "a/r/../etc" },
      { "a/b/up": "../..", out: "a/b/up/../x" },
    ] as Record<string, string>[])
      expect(() => linked(links), JSON.stringify(links)).toThrow("is a symbolic link out of the artifact");
    expect(() => linked({ x: "y", y: "x" })).toThrow("too many symbolic links");
  });

  test("to Kata's own place become relative", () => {
    expect(linked({ "a/l": "/opt/kata/a/b/c/file", m: "/opt/kata/a" }, "/opt/kata")).toEqual([
      { path: "a/l", target: "../a/b/c/file" },
      { path: "m", target: "a" },
    ]);
    expect(() => linked({ l: "/opt/kata/../../etc" }, "/opt/kata")).toThrow("out of the artifact");
    expect(() => linked({ l: "/opt/katana" }, "/opt/kata")).toThrow("out of the artifact");
  });

  test("that are let through never resolve to what is outside (any links)", () => {
    const part = fc.constantFrom("a", "b", "c", "..", ".");
    const path = fc.array(fc.constantFrom("a", "b", "c", "d"), { minLength: 1, maxLength: 3 });
    const target = fc.array(part, { minLength: 1, maxLength: 5 }).map((parts) => parts.join("/"));
    fc.assert(
      fc.property(fc.array(fc.tuple(path, target), { maxLength: 6 }), (entries) => {
        const t = tree((t) => {
          for (const [parts, to] of entries) t.link(parts, to);
        });
        let links: { path: string; target: string }[];
        try {
          ({ links } = t.layout("", undefined));
        } catch {
          return;
        }
        // Walked as the kernel walks, with the root three levels up: no way may come above it.
        const map = new Map(links.map((link) => [link.path, link.target]));
        for (const { path } of links) {
          let here = ["R"];
          const todo = path.split("/").reverse();
          for (let steps = 0; todo.length > 0 && steps < 500; steps++) {
            const next = todo.pop() ?? "";
            if (next === "" || next === ".") continue;
            if (next === "..") here = here.slice(0, -1);
            else {
              const key = [...here.slice(1), next].join("/");
              const to = map.get(key);
              if (to === undefined) here = [...here, next];
              else todo.push(...to.split("/").reverse());
            }
            expect(here[0]).toBe("R");
          }
        }
      }),
    );
  });
});

test("a name that climbs out is refused at once, one that is no text can never be taken", () => {
  expect(() => partsOf("bin/../../etc/passwd")).toThrow('has ".." in its name');
  expect(partsOf("./bin//runsc")).toEqual({ parts: ["bin", "runsc"] });
  expect(partsOf("/etc/passwd")).toEqual({ parts: ["etc", "passwd"] });
  for (const name of ["bin/\xff", "bin/a\nb", "bin/a\\b"])
    expect(partsOf(name)).toMatchObject({ odd: "has a name that is no plain text" });
  expect(partsOf("x".repeat(300))).toMatchObject({ odd: "has a name that is too long" });
});

test("folders cannot be replaced without end", () => {
  const t = new ArtifactTree();
  expect(() => {
    for (let n = 0; n < 2000; n++) {
      t.file(["a", "b"], n, 1, false);
      t.file(["a"], n, 1, false);
      t.whiteout(["a"]);
      t.nextLayer();
      t.whiteout(["a"]);
    }
  }).toThrow("more than 1000 folders");
});

import { readFileSync } from "node:fs";
import { join } from "node:path";
import { expect, test } from "vitest";
import { type KubernetesVersion, kubernetesVersions } from "./kubernetes.ts";
import { needs, startable, steps, stepsFor } from "./plan.ts";

test("every need names steps that exist, and brings along what these wait for", () => {
  for (const need of Object.keys(needs) as (keyof typeof needs)[]) {
    const ids = stepsFor(need).map(({ id }) => id);
    expect(ids).toHaveLength(needs[need].length);
    for (const { after } of stepsFor(need)) expect(ids).toEqual(expect.arrayContaining([...after]));
  }
});

test("all steps can be done in an order that respects what they wait for", () => {
  const done = new Set<string>();
  let waiting = [...steps];
  while (waiting.length > 0) {
    const next = startable(waiting, done)[0];
    if (next === undefined) expect.fail(`waits for itself: ${waiting.map(({ id }) => id)}`);
    done.add(next.id);
    waiting = waiting.filter((step) => step !== next);
  }
  expect(done.size).toBe(steps.length);
});

test("the demo does not build what only tests need", () => {
  expect(stepsFor("demo").map(({ id }) => id)).not.toContain("critest");
});

test("no two programs are written to the same place", () => {
  const outputs = steps.flatMap((step) => {
    if (step.do === "cargo") return [step.build.output];
    return step.do === "go" ? step.builds.map(({ output }) => output) : [];
  });
  expect(new Set(outputs).size).toBe(outputs.length);
});

test("every version of Kubernetes is a program of its own, from pins of its own", () => {
  const versions = Object.keys(kubernetesVersions) as KubernetesVersion[];
  const builds = stepsFor("up", versions).flatMap((step) =>
    step.id === "kubernetes" && step.do === "go" ? step.builds : [],
  );
  expect(builds.map(({ output, modfile = "go.mod" }) => `${output} of ${modfile}`)).toEqual([
    "kube-1.33 of go-1.33.mod",
    "kube-1.34 of go-1.34.mod",
    "kube-1.35 of go-1.35.mod",
    "kube of go.mod",
    "kube-1.37 of go-1.37.mod",
  ]);
  for (const [index, { modfile = "go.mod", ldflags }] of builds.entries()) {
    const version = kubernetesVersions[versions[index]!];
    expect(ldflags).toContain(`gitVersion=${version} `);
    const pins = readFileSync(join(import.meta.dirname, "kubernetes", modfile), "utf8");
    expect(pins).toContain(`\tk8s.io/kubernetes ${version}\n`);
  }
  expect(
    stepsFor("up").map((step) => (step.id === "kubernetes" && step.do === "go" ? step.builds : [])),
  ).toContainEqual([builds.find(({ output }) => output === "kube")]);
});

test("nothing waits for a step that is dispensable, and no command but the whole test run has one", () => {
  const ids = steps.filter(({ dispensable }) => dispensable).map(({ id }) => id);
  expect(ids).toContain("cri-o");
  for (const { after } of steps) expect(after.filter((id) => ids.includes(id))).toEqual([]);
  for (const need of Object.keys(needs) as (keyof typeof needs)[])
    if (need !== "all") expect(needs[need].filter((id) => ids.includes(id))).toEqual([]);
});

/** Layering rules: programs never import each other; runtime's layers look down only; pure files do no I/O. */
const pure = "(^|/)(spec/[^/]+|plan|state)\\.ts$";
module.exports = {
  // A test may import the test estate.
  forbidden: [
    {
      name: "no-circular",
      severity: "error",
      from: {},
      to: { circular: true, viaOnly: { dependencyTypesNot: ["type-only"] } },
    },
    {
      name: "lib-stands-alone",
      severity: "error",
      from: { path: "^lib/", pathNot: "\\.test\\.ts$" },
      to: { path: "^(operator|node-agent|runtime|kubectl|test)/" },
    },
    {
      name: "operator-imports-only-lib",
      severity: "error",
      from: { path: "^operator/", pathNot: "\\.test\\.ts$" },
      to: { path: "^(node-agent|runtime|kubectl|test)/" },
    },
    {
      name: "kubectl-imports-only-lib",
      severity: "error",
      from: { path: "^kubectl/", pathNot: "\\.test\\.ts$" },
      to: { path: "^(operator|node-agent|runtime|test)/" },
    },
    {
      name: "node-agent-imports-only-lib",
      severity: "error",
      from: { path: "^node-agent/", pathNot: "\\.test\\.ts$" },
      to: { path: "^(operator|runtime|test)/" },
    },
    {
      name: "runtime-imports-only-lib",
      severity: "error",
      from: { path: "^runtime/", pathNot: "\\.test\\.ts$" },
      to: { path: "^(operator|node-agent|test)/" },
    },
    {
      name: "nothing-imports-cri",
      comment: "cri is the top layer of the runtime: only main and the CLI wire it",
      severity: "error",
      from: { path: "^runtime/src/[^/]+/", pathNot: "^runtime/src/cri/" },
      to: { path: "^runtime/src/cri/" },
    },
    {
      name: "linux-is-the-bottom",
      severity: "error",
      from: { path: "^runtime/src/linux/" },
      to: { path: "^runtime/src/(?!linux/)" },
    },
    {
      name: "pure-does-no-io",
      severity: "error",
      from: { path: pure },
      to: {
        dependencyTypes: ["core"],
        path: "^(fs|fs/promises|child_process|net|http|https|http2|dgram|worker_threads)$",
      },
    },
    {
      name: "api-does-no-io",
      severity: "error",
      from: { path: "^lib/api/", pathNot: "\\.test\\.ts$" },
      to: { dependencyTypes: ["core"] },
    },
    {
      name: "no-orphan-npm",
      severity: "error",
      from: {},
      to: { dependencyTypes: ["npm-no-pkg", "npm-unknown"] },
    },
  ],
  options: {
    doNotFollow: { path: "node_modules" },
    exclude: { path: "^lib/gen/" },
    combinedDependencies: true,
    tsPreCompilationDeps: true,
    parser: "tsc",
    tsConfig: { fileName: "tsconfig.json" },
    enhancedResolveOptions: {
      extensions: [".ts", ".js", ".json"],
      conditionNames: ["import", "node", "default"],
      exportsFields: ["exports"],
    },
  },
};

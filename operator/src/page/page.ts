import { createHash } from "node:crypto";
import type { Express, Request, Response } from "express";
import { type Html, html } from "./html.ts";
import {
  type Asked,
  type Fleet,
  fleetView,
  nodePage,
  profilePage,
  tenantPage,
  tenantsPage,
  type View,
} from "./views.ts";

/**
 * The status page: read only, from the operator's own stores, so that the browser needs no token and gets none. Whoever
 * reaches the port may read it: it is for kubectl port-forward, or an Ingress that asks who it is.
 */

const style = `
:root{color-scheme:light dark;--line:light-dark(#d5d9e0,#3a404b);--faint:light-dark(#5a6270,#a3abb8);--card:light-dark(#f5f6f8,#1d2128);
--good:light-dark(#14682f,#6fd08c);--bad:light-dark(#ab1f1f,#ff9a94);--warn:light-dark(#7d5200,#f0c060);--link:light-dark(#0b57a4,#8ec2ff)}
*{box-sizing:border-box}body{margin:0;font:16px/1.5 system-ui,sans-serif;background:light-dark(#fff,#14171c);color:light-dark(#1c2028,#e7eaf0)}
header,main,footer{max-width:80rem;margin:0 auto;padding:.75rem 1.25rem}header{display:flex;gap:1.5rem;align-items:baseline;border-bottom:1px solid var(--line)}
header b{font-size:1.1rem}a{color:var(--link)}:focus-visible{outline:3px solid var(--link);outline-offset:2px}
.skip{position:absolute;left:-999px}.skip:focus{left:1rem;top:.5rem}nav[aria-label=Main] a{margin-right:1rem}a[aria-current]{font-weight:600}
h1{font-size:1.6rem;margin:.5rem 0}h2{font-size:1.2rem;margin:1.5rem 0 .5rem}h3{font-size:1.05rem;margin:0 0 .25rem}
.scroll{overflow-x:auto}table{border-collapse:collapse;width:100%}caption{position:absolute;left:-999px}th,td{text-align:left;padding:.4rem .8rem .4rem 0;border-bottom:1px solid var(--line);vertical-align:top}
thead th{color:var(--faint);font-weight:500;white-space:nowrap}tbody th{font-weight:600}code{font-family:ui-monospace,monospace;font-size:.9em}
.badge{display:inline-block;padding:0 .5em;border:1px solid currentColor;border-radius:.6em;font-size:.85em;font-weight:600;white-space:nowrap}
.good{color:var(--good)}.bad{color:var(--bad)}.warn{color:var(--warn)}.idle,.empty{color:var(--faint)}
dl{display:grid;grid-template-columns:max-content 1fr;gap:.2rem 1.2rem;margin:.5rem 0}dt{color:var(--faint)}dd{margin:0;overflow-wrap:anywhere}
.steps{display:flex;flex-wrap:wrap;gap:.75rem;padding:0;list-style:none}.steps li{border:1px solid currentColor;border-radius:.5rem;padding:.4rem 1rem}.steps b{font-size:1.3rem;margin-right:.3rem}
.story{background:var(--card);border-radius:.5rem;padding:.8rem 1rem;margin:.6rem 0}.story h2{margin-top:0}.failed li{margin:.4rem 0}progress{width:6rem;vertical-align:middle}
footer{color:var(--faint);font-size:.85rem}@media(max-width:40rem){header{flex-wrap:wrap;gap:.5rem}dl{grid-template-columns:1fr}dt{margin-top:.4rem}}`;

/** Fetches the page again and puts its main part in place while nobody types or is between tabs. */
const script = `
const every=5000,note=document.getElementById("live");
const again=async()=>{
  if(!document.hidden&&document.activeElement?.tagName!=="INPUT"&&getSelection()?.isCollapsed!==false){
    try{
      const answer=await fetch(location.href,{signal:AbortSignal.timeout(every)});
      if(answer.ok){
        const next=new DOMParser().parseFromString(await answer.text(),"text/html");
        const here=document.querySelector("main"),there=next.querySelector("main");
        if(here.innerHTML!==there.innerHTML){
          const held=here.contains(document.activeElement)?document.activeElement.getAttribute("href"):null;
          here.innerHTML=there.innerHTML;
          if(held)[...here.querySelectorAll("a")].find(a=>a.getAttribute("href")===held)?.focus();
        }
        note.textContent="Live: "+new Date().toLocaleTimeString();
      }else note.textContent="The operator answered "+answer.status+" at "+new Date().toLocaleTimeString();
    }catch{note.textContent="The operator has not answered since "+new Date().toLocaleTimeString()}
  }
  setTimeout(again,every);
};
setTimeout(again,every);`;

const hash = (text: string): string => `'sha256-${createHash("sha256").update(text).digest("base64")}'`;
const policy = `default-src 'none'; connect-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'; style-src ${hash(style)}; script-src ${hash(script)}`;
const trusted = (markup: string): Html => ({ markup });

const places = [
  ["/", "Fleet"],
  ["/tenants", "Tenants"],
] as const;

const whole = (path: string, title: string, main: Html): string =>
  `<!doctype html>${
    html`<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1"><title>${title} · Bulkhead</title><style>${trusted(style)}</style></head>
<body><a class="skip" href="#main">Skip to the content</a><header><b>Bulkhead</b><nav aria-label="Main">${places.map(
      ([href, text]) =>
        href === path
          ? html`<a href="${href}" aria-current="page">${text}</a>`
          : html`<a href="${href}">${text}</a>`,
    )}</nav></header><main id="main">${main}</main><footer id="live" role="status">Read only; looks again every 5 seconds.</footer><script type="module">${trusted(script)}</script></body></html>`
      .markup
  }`;

/** The part of a list that a query asks for; whatever it is, it is bounded. */
const askedOf = ({ query }: Request): Asked => {
  const text = (value: unknown): string => (typeof value === "string" ? value : "");
  const page = Number.parseInt(text(query.page), 10);
  return { q: text(query.q).slice(0, 253), page: Number.isSafeInteger(page) && page > 0 ? page : 0 };
};

/** Adds the page's routes. `fleet` gives what the stores hold now; undefined until they were filled. */
export const addPage = (app: Express, fleet: () => Fleet | undefined): void => {
  const show = (view: (now: Fleet, request: Request) => View) => (request: Request, response: Response) => {
    response.set({
      "content-security-policy": policy,
      "x-content-type-options": "nosniff",
      "referrer-policy": "no-referrer",
      "cache-control": "no-store",
    });
    const now = fleet();
    if (now === undefined) {
      response
        .status(503)
        .send(
          whole(
            request.path,
            "Not ready",
            html`<h1>Not ready</h1><p>The operator has not read the cluster yet.</p>`,
          ),
        );
      return;
    }
    const found = view(now, request);
    if (found === undefined)
      response
        .status(404)
        .send(
          whole(
            request.path,
            "Not found",
            html`<h1>Not found</h1><p>There is nothing of that name. <a href="/">Fleet</a></p>`,
          ),
        );
    else response.send(whole(request.path, found.title, found.main));
  };
  const name = (request: Request): string => String(request.params.name);
  app.get(
    "/",
    show((now, request) => fleetView(now, askedOf(request))),
  );
  app.get(
    "/profiles/:name",
    show((now, request) => profilePage(now, name(request), askedOf(request))),
  );
  app.get(
    "/nodes/:name",
    show((now, request) => nodePage(now, name(request))),
  );
  app.get(
    "/tenants",
    show((now, request) => tenantsPage(now, askedOf(request))),
  );
  app.get(
    "/tenants/:name",
    show((now, request) => tenantPage(now, name(request))),
  );
  app.use(show(() => undefined));
};

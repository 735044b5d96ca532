"use strict";
// What the page cannot do without a script: times that go on, copying, and what happens while somebody looks.
(() => {
  const TIMES_MS = 10000; // how often times are written anew
  const PAUSE_MS = 1000; // at least so long between two readings of the page,
  const PAUSE_TIMES = 4; // and so many times as long as one took: a large ledger is not kept busy by who looks at it
  const FALLBACK_MS = 30000; // read anew also without an event, and connect again

  // The same words as the server's.
  const ago = (seconds) => {
    const length = Math.abs(seconds);
    if (length < 5) return "now";
    const [size, unit] = length < 60 ? [1, "s"] : length < 3600 ? [60, "min"] : length < 86400 ? [3600, "h"] : [86400, "d"];
    const number = Math.floor(length / size);
    return seconds < 0 ? `in ${number} ${unit}` : `${number} ${unit} ago`;
  };
  const writeTimes = () => {
    for (const time of document.querySelectorAll("time[datetime]")) {
      const seconds = Math.floor((Date.now() - Date.parse(time.dateTime)) / 1000);
      if (Number.isFinite(seconds)) time.textContent = ago(seconds);
    }
  };
  setInterval(writeTimes, TIMES_MS);

  const copy = async (text) => {
    if (navigator.clipboard) return navigator.clipboard.writeText(text);
    // Without https there is no clipboard but this one.
    const field = document.createElement("textarea");
    field.value = text;
    field.className = "offscreen";
    document.body.append(field);
    field.select();
    document.execCommand("copy");
    field.remove();
  };
  document.addEventListener("click", (event) => {
    const button = event.target.closest("[data-copy]");
    if (!button) return;
    const before = button.textContent;
    copy(button.dataset.copy).then(() => {
      button.textContent = "copied";
      setTimeout(() => { button.textContent = before; }, 1000);
    }).catch(() => {});
  });

  if (!document.getElementById("live") || !window.EventSource) return;
  const connection = document.getElementById("connection");
  const say = (text) => { if (connection && connection.textContent !== text) connection.textContent = text; };

  // What has the focus has it afterwards, if it is still there.
  const focused = (live) => {
    const active = document.activeElement;
    if (!live.contains(active)) return null;
    const same = ["id", "href", "data-copy", "aria-label"].find((name) => active.getAttribute(name));
    return same ? `[${same}="${CSS.escape(active.getAttribute(same))}"]` : null;
  };
  const replace = (text) => {
    const page = new DOMParser().parseFromString(text, "text/html");
    const [old, fresh] = [document.getElementById("live"), page.getElementById("live")];
    if (!old || !fresh) return;
    const again = focused(old);
    const scrolled = [...old.querySelectorAll(".scroll")].map((one) => one.scrollLeft);
    const opened = [...old.querySelectorAll("details")].map((one) => one.open);
    old.replaceWith(document.importNode(fresh, true));
    const live = document.getElementById("live");
    live.querySelectorAll(".scroll").forEach((one, index) => { one.scrollLeft = scrolled[index] || 0; });
    live.querySelectorAll("details").forEach((one, index) => { one.open = opened[index] || false; });
    if (again) live.querySelector(again)?.focus({ preventScroll: true });
  };

  let reading = false;
  let wanted = false;
  const read = async () => {
    wanted = true;
    if (reading || document.hidden) return;
    reading = true;
    while (wanted && !document.hidden) {
      wanted = false;
      const began = performance.now();
      try {
        const answer = await fetch(location.href, { headers: { accept: "text/html" } });
        if (answer.status === 401) return location.reload();
        if (answer.ok) replace(await answer.text());
      } catch {
        say("not connected");
      }
      await new Promise((resolve) => setTimeout(resolve, Math.max(PAUSE_MS, PAUSE_TIMES * (performance.now() - began))));
    }
    reading = false;
  };

  // Browsers have few connections to one host: a page that nobody sees holds none.
  let source = null;
  const connect = () => {
    if (document.hidden || (source && source.readyState !== EventSource.CLOSED)) return;
    source = new EventSource("/page/events");
    source.onopen = () => { say("live"); read(); };
    source.onerror = () => say("not connected");
    for (const type of document.getElementById("content").dataset.events.split(" ")) {
      source.addEventListener(type, read);
    }
  };
  document.addEventListener("visibilitychange", () => {
    if (document.hidden) {
      source?.close();
      source = null;
      say("");
    } else {
      connect();
      read();
    }
  });
  setInterval(() => { connect(); read(); }, FALLBACK_MS);
  connect();
})();

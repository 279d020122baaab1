"use strict";
// The page of an error that passes: tries again by itself, and shows the page that was wanted once there is one.
(() => {
  const EVERY_MS = 3000;
  const look = async () => {
    try {
      const answer = await fetch(location.href, { headers: { "HX-Request": "true", "Accept": "text/html" } });
      if (answer.status < 500) return location.reload();
    } catch { /* the node itself is away */ }
    setTimeout(look, EVERY_MS);
  };
  setTimeout(look, EVERY_MS);
})();

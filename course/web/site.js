// Shows the places in the queue as they change. Where one is done, the page is loaded again, unless a file has been chosen on it.
"use strict";

const shown = [...document.querySelectorAll("[data-waiting]")];
const files = document.getElementById("files");

if (shown.length) {
  const source = new EventSource("/events");
  source.onmessage = ({ data }) => {
    const waiting = JSON.parse(data);
    for (const place of shown) {
      const text = waiting[place.dataset.waiting] ?? "done: load this page again";
      if (place.textContent !== text) place.textContent = text;
    }
    if (shown.some((place) => !(place.dataset.waiting in waiting)) && !files?.value) location.reload();
  };
}

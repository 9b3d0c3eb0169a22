"use strict";
// Before anything is drawn: light or dark, as chosen here or else as the system has it. The page's only blocking script.
(() => {
  const system = matchMedia("(prefers-color-scheme: dark)");
  const chosen = () => { try { return localStorage.getItem("ernie45.theme"); } catch { return null; } };
  const apply = () => {
    const theme = chosen();
    document.documentElement.dataset.theme = theme === "light" || theme === "dark" ? theme : system.matches ? "dark" : "light";
  };
  system.addEventListener("change", apply);
  addEventListener("ernie45-theme", apply);
  apply();
})();

/** Hands the reader a file. */

export function saveAs(name, blob) {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(blob);
  link.download = name;
  link.click();
  // The browser has begun to read it then, and keeps it until it is done.
  setTimeout(() => URL.revokeObjectURL(link.href), 60_000);
}

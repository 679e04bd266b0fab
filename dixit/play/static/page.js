// What both pages use. Text is never set as HTML.

export const $ = id => document.getElementById(id);

export function element(tag, properties = {}, ...children) {
  const node = document.createElement(tag);
  for (const [key, value] of Object.entries(properties)) {
    if (key in node) node[key] = value; else node.setAttribute(key, value);
  }
  node.append(...children.filter(child => child));
  return node;
}

export async function ask(path, body, type = 'application/json') {
  const options = body === undefined ? {} : {method: 'POST', body, headers: {'Content-Type': type}};
  let response;
  try {
    response = await fetch(path, options);
  } catch {
    throw new Error('the server does not answer; is it still running?');
  }
  const result = await response.json().catch(() => ({error: `the server failed (${response.status})`}));
  if (result.error) throw new Error(result.error);
  return result;
}

export function showError(error) {
  $('error').hidden = !error;
  $('error').textContent = error ? error.message : '';
}

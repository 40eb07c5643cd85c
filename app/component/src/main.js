// The component: one workspace for each element that Streamlit gives us, kept and updated while the page lives.
import { Workspace } from "./workspace.js";

const workspaces = new WeakMap();

export default function (component) {
  const { parentElement } = component;
  let workspace = workspaces.get(parentElement);
  if (!workspace) {
    workspace = new Workspace(parentElement.querySelector(".veca") ?? parentElement);
    workspaces.set(parentElement, workspace);
  }
  workspace.update(component);
  return () => {
    workspaces.get(parentElement)?.destroy();
    workspaces.delete(parentElement);
  };
}

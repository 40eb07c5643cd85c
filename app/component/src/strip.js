// Thumbnails of all images in the folder: a click opens one.
import { element } from "./dom.js";

export class Strip {
  constructor(workspace) {
    this.workspace = workspace;
    this.box = element("nav", { className: "strip", parent: workspace.body });
    this.box.setAttribute("aria-label", "Images");
  }

  update({ images, image, pass }) {
    const mark = JSON.stringify(images);
    if (mark !== this.mark) {
      this.mark = mark;
      this.box.replaceChildren();
      this.box.hidden = images.length < 2;
      for (const { id, name } of images) {
        const item = element("button", { className: "thumb", parent: this.box, title: name, type: "button" });
        item.dataset.image = id;
        item.onclick = () => this.workspace.tell("pick", id);
        const url = `/veca/image/${id}/thumbnail${pass ? `?pass=${pass}` : ""}`;
        const picture = element("img", { parent: item, loading: "lazy", alt: "", src: url });
        picture.onerror = () => item.classList.add("unreadable");
        element("span", { parent: item, text: name.split("/").pop() });
      }
    }
    for (const item of this.box.children) item.classList.toggle("on", item.dataset.image === image.id);
  }
}

"""The data set: order, names, and images from zip or folder: docs/reference.md [1] to [4]."""

import json
import re

import pytest

from dekr_infer.data.coco import load_data_set, tensor_names
from dekr_infer.errors import DekrError
from dekr_infer.geometry import Size
from dekr_infer.skeleton import COCO_17
from tests.support.coco_files import keypoints, person, write_annotation
from tests.support.commands import error_of

SIZES = {"000000000030.jpg": Size(4, 5), "000000000007.jpg": Size(6, 4), "b.png": Size(3, 9), "a.jpg": Size(8, 8)}


def refused(root) -> str:
    return error_of(load_data_set, root, "val2017")


def test_images_come_in_the_order_of_the_annotation_file_people_or_not(tmp_path):
    write_annotation(tmp_path, SIZES)  # ids fall, names are unsorted, nobody in any
    data = load_data_set(tmp_path, "val2017")
    assert [image.file_name for image in data.images] == list(SIZES)
    assert [image.size for image in data.images] == list(SIZES.values())


def test_a_tensor_is_named_by_the_stem_and_the_id_is_the_annotations(tmp_path):
    write_annotation(tmp_path, SIZES)
    data = load_data_set(tmp_path, "val2017")
    assert [image.stem for image in data.images] == ["000000000030", "000000000007", "b", "a"]
    assert [image.id for image in data.images] == [1000, 999, 998, 997]  # not the number in the name


def test_the_split_names_the_file(tmp_path):
    write_annotation(tmp_path, SIZES, split="train2017")
    assert len(load_data_set(tmp_path, "train2017").images) == 4
    assert "person_keypoints_val2017.json: cannot be read" in refused(tmp_path)
    assert "DATASET.ROOT" in refused(tmp_path)


@pytest.mark.parametrize("content", ["[]", "{}", '{"images": []}', '{"images": 3}', "3"])
def test_a_file_without_images_is_no_annotation(tmp_path, content):
    write_annotation(tmp_path, SIZES).write_text(content)
    assert "lists no images" in refused(tmp_path) or "not a COCO annotation file that lists images" in refused(tmp_path)


def test_an_annotation_cut_short_is_named(tmp_path):
    path = write_annotation(tmp_path, SIZES)
    path.write_text(path.read_text()[:-20])
    assert f"{path}: not a JSON file" in refused(tmp_path)


@pytest.mark.parametrize(
    ("change", "part"),
    [
        ({"file_name": None}, "file_name: Expected str, got null"),
        ({"file_name": "/etc/x.jpg"}, "no file name"),
        ({"file_name": "../x.jpg"}, "no file name"),
        ({"file_name": "x\\..\\y.jpg"}, "no file name"),
        ({"file_name": "x\0.jpg"}, "no file name"),
        ({"file_name": ""}, "no file name"),
        ({"id": "7"}, "id: Expected int, got str"),
        ({"id": True}, "id: Expected int, got bool"),
        ({"height": 0}, "height: Expected int >= 1"),
        ({"width": -3}, "width: Expected int >= 1"),
        ({"width": 9.5}, "width: Expected int, got float"),
        ({"width": "wide"}, "width: Expected int, got str"),
        ({"width": 40_000}, "is 4x40000 pixels; this program takes at most 32766 a side"),
        ({"id": 2**63}, "id: "),
        ({"id": 999}, "same id 999"),
        ({"file_name": "000000000007.jpg"}, "images 1000 and 999 are the same file, 000000000007.jpg; remove one"),
    ],
)
def test_images_of_equal_or_unusable_names_are_refused(tmp_path, change, part):
    path = write_annotation(tmp_path, SIZES)
    content = json.loads(path.read_text())
    content["images"][0].update(change)
    path.write_text(json.dumps(content))
    assert part in refused(tmp_path)


def test_tensors_are_named_as_published_where_the_name_can_be_used():
    names = ["000000000139.jpg", "sub/b.png", "mit Leerzeichen ä.jpg", "x" * 240 + ".jpg", "c"]
    assert tensor_names(names) == ["000000000139", "b", "mit Leerzeichen ä", "x" * 240, "c"]


@pytest.mark.parametrize(
    ("names", "starts"),
    [
        (["IMG.2024.jpg", "IMG.2025.jpg"], ["IMG_2024-", "IMG_2025-"]),
        (["a/x.jpg", "b/x.jpg", "b/y.jpg"], ["x-", "x-", "y"]),
        (["x.jpg", "x.png"], ["x-", "x-"]),
        (["a\\x.jpg", "b\\x.jpg"], ["x-", "x-"]),
        (["é" * 121 + ".jpg"], ["_" * 64 + "-"]),
    ],
)
def test_other_images_get_safe_names_of_their_own(names, starts):
    made = tensor_names(names)
    assert len(set(made)) == len(names)
    for stem, start in zip(made, starts, strict=True):
        assert re.fullmatch(re.escape(start) + ("[0-9a-f]{16}" if start.endswith("-") else ""), stem)
    assert tensor_names(names[::-1]) == made[::-1], "whatever their order"


@pytest.mark.parametrize(
    ("number", "part"),
    [(1000, "a and a have the same id 1000"), (1, "images 1000 and 1 are the same file, a;")],
)
def test_names_of_one_character_are_distinguished(tmp_path, number, part):
    """Python keeps one object for all equal texts of one character."""
    path = write_annotation(tmp_path, {"a": Size(4, 5)})
    content = json.loads(path.read_text())
    content["images"].append(content["images"][0] | {"id": number})
    path.write_text(json.dumps(content))
    assert part in refused(tmp_path)


@pytest.mark.parametrize("key", ["file_name", "id", "height", "width"])
def test_an_image_that_lacks_a_field_is_refused(tmp_path, key):
    path = write_annotation(tmp_path, SIZES)
    content = json.loads(path.read_text())
    del content["images"][2][key]
    path.write_text(json.dumps(content))
    message = refused(tmp_path)
    assert f"missing required field {key}" in message and "image 3" in message


# -- people ------------------------------------------------------------------------------------------------------------


def changed(tmp_path, change):
    people = [person(number, 1000, keypoints(number)) for number in (1, 2)]
    path = write_annotation(tmp_path, {"a.jpg": Size(400, 500)}, people)
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))
    return tmp_path


def recoloured(content, number, **category):
    """Give all people the category `number`, and change the file's category to match."""
    content["categories"][0].update(id=number, **category)
    for entry in content["annotations"]:
        entry["category_id"] = number


def test_the_category_is_the_one_with_keypoints_that_the_people_use(tmp_path):
    data = load_data_set(changed(tmp_path, lambda content: recoloured(content, 7)), "val2017")
    assert data.category.id == 7 and [entry.id for entry in data.ground_truth()] == [1, 2] and data.warnings == {}


@pytest.mark.parametrize("position", [0, 1])
@pytest.mark.parametrize("dummy", [{"id": 9, "name": "people-dataset"}, {"id": 9, "name": "box", "keypoints": []}])
def test_a_further_category_without_keypoints_is_ignored(tmp_path, dummy, position):
    def change(content):
        content["categories"].insert(position, dummy)
        box = {"id": 50, "image_id": 1000, "category_id": 9, "bbox": [1, 2, 3, 4]}
        content["annotations"] += [box, {"id": 51, "image_id": 1000, "category_id": 9, "segmentation": "x"}]

    data = load_data_set(changed(tmp_path, change), "val2017")
    assert data.category.id == 1 and len(data.ground_truth()) == 2


def test_of_two_categories_with_keypoints_only_one_may_be_used(tmp_path):
    def second(content):
        content["categories"].insert(0, content["categories"][0] | {"id": 5, "name": "dog"})

    assert load_data_set(changed(tmp_path, second), "val2017").category.id == 1

    def both(content):
        second(content)
        content["annotations"][0]["category_id"] = 5

    root = changed(tmp_path, both)
    assert "2 categories have keypoints (dog, person); name one with --category" in refused(root)
    assert [entry.id for entry in load_data_set(root, "val2017", "dog").ground_truth()] == [1]
    with pytest.raises(DekrError, match="has no category cat; its categories are dog, person"):
        load_data_set(root, "val2017", "cat")


def test_joint_names_are_compared_without_case_and_separators(tmp_path):
    names = [name.replace("_", " ").title() for name in COCO_17.joints]
    data = load_data_set(changed(tmp_path, lambda content: recoloured(content, 1, keypoints=names)), "val2017")
    assert data.warnings == {}


def test_other_joint_names_are_a_warning_and_permuted_ones_are_refused(tmp_path):
    names = ["nose", "head_bottom", "head_top", *COCO_17.joints[3:]]
    data = load_data_set(changed(tmp_path, lambda content: recoloured(content, 1, keypoints=names)), "val2017")
    assert set(data.warnings) == {"joint_names"}
    assert (
        "names 2 joints otherwise: head_bottom where COCO has left_eye, head_top where" in data.warnings["joint_names"]
    )
    turned = [name.replace("_", "-") for name in COCO_17.joints[::-1]]
    assert "in another order" in refused(changed(tmp_path, lambda content: recoloured(content, 1, keypoints=turned)))


@pytest.mark.parametrize(
    ("name", "entry"),
    [
        ("area", {"area": 0}),
        ("area", {"area": 1.0}),
        ("num_keypoints", {"num_keypoints": 3}),
        ("joints_normalised", {"keypoints": [0.5, 0.25, 2.0] * 17, "area": 500.0}),
        ("joints_outside", {"keypoints": [9000.0, 9000.0, 2.0] * 17, "area": 500.0}),
        ("unlisted_images", {"image_id": 5}),
    ],
)
def test_odd_people_are_a_warning_with_a_count_and_the_first_annotation(tmp_path, name, entry):
    root = changed(tmp_path, lambda content: content["annotations"][1].update(entry))
    data = load_data_set(root, "val2017")
    assert set(data.warnings) == {name}
    assert "annotation 2 of image" in data.warnings[name] and ": 1 " in data.warnings[name]
    assert all(entry.num_keypoints == 17 for entry in data.ground_truth())
    assert len(data.ground_truth()) == (1 if name == "unlisted_images" else 2)


def test_a_missing_count_or_crowd_flag_is_filled_in_without_a_warning(tmp_path):
    def change(content):
        for entry in content["annotations"]:
            del entry["num_keypoints"], entry["iscrowd"]

    data = load_data_set(changed(tmp_path, change), "val2017")
    assert data.warnings == {} and [(e.num_keypoints, e.iscrowd) for e in data.ground_truth()] == [(17, 0)] * 2


def test_several_wrong_annotations_are_counted(tmp_path):
    root = changed(tmp_path, lambda content: [entry.pop("bbox") for entry in content["annotations"]])
    assert "annotation 1 (id 1, image_id 1000): Object missing required field bbox (the first of 2 wrong" in refused(
        root
    )


@pytest.mark.parametrize(
    ("change", "part"),
    [
        (lambda content: content.update(categories=[]), "lists no category"),
        (lambda content: content.pop("categories"), "lists no category"),
        (lambda content: content["categories"][0].pop("id"), "missing required field id"),
        (lambda content: content["categories"][0].update(keypoints=["a"] * 14), "has 14 joints, expected 17"),
    ],
)
def test_an_annotation_without_a_category_of_17_joints_is_refused(tmp_path, change, part):
    assert part in refused(changed(tmp_path, change))


@pytest.mark.parametrize(
    ("entry", "part"),
    [
        ({"area": None}, "area: Expected float, got null"),
        ({"area": -1.0}, "area: Expected float >= 0"),
        ({"area": 1e13}, "area: Expected float <= 1000000000000.0"),
        ({"keypoints": [1, 2, 3]}, "keypoints: 3 numbers, expected 51"),
        ({"keypoints": None}, "keypoints: Expected array, got null"),
        ({"keypoints": ["1"] * 51}, "keypoints[0]: Expected float, got str"),
        ({"keypoints": [1e13] * 51}, "keypoints[0]: Expected float <= 1000000000000.0"),
        ({"bbox": [1, 2, 3]}, "bbox: Expected array of length >= 4"),
        ({"iscrowd": 2}, "iscrowd: Invalid enum value 2"),
        ({"category_id": "1"}, "category_id: Expected int, got str"),
        ({"category_id": 9}, "category_id: 9 is no category"),
        ({"image_id": None}, "image_id: Expected int, got null"),
        ({"id": 0}, "id: Expected int >= 1"),
        ({"id": 1}, "two annotations have the id 1"),
    ],
)
def test_a_wrong_annotation_is_named_with_its_field(tmp_path, entry, part):
    message = refused(changed(tmp_path, lambda content: content["annotations"][1].update(entry)))
    assert part in message, message
    assert "annotation" in message


def test_a_file_without_annotations_has_images_and_no_people(tmp_path):
    data = load_data_set(changed(tmp_path, lambda content: content.pop("annotations")), "val2017")
    assert len(data.images) == 1 and data.people is None
    with pytest.raises(DekrError, match="has no annotations"):
        data.ground_truth()


def test_a_byte_order_mark_is_skipped(tmp_path):
    path = write_annotation(tmp_path, SIZES)
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    assert len(load_data_set(tmp_path, "val2017").images) == 4

// Verification of webhooks, with the example of Standard Webhooks.

import assert from "node:assert/strict";
import { createHmac } from "node:crypto";
import { test } from "node:test";

import { WebhookVerificationError, verifyWebhook } from "../dist/index.js";

const SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw";
const BODY = '{"test": 2432232314}';
const EXAMPLE = {
  "webhook-id": "msg_p5jXN8AQM9LWM0D4loKWxJek",
  "webhook-timestamp": "1614265330",
  "webhook-signature": "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=",
};
const ALWAYS = { tolerance: 10 ** 9 };

function signed(body, seconds = 0, secret = SECRET) {
  const timestamp = String(Math.floor(Date.now() / 1000) + seconds);
  const key = Buffer.from(secret.slice("whsec_".length), "base64");
  const signature = createHmac("sha256", key).update(`msg_1.${timestamp}.${body}`).digest("base64");
  return { "webhook-id": "msg_1", "webhook-timestamp": timestamp, "webhook-signature": `v1,${signature}` };
}

test("a signed body is accepted in every form", async () => {
  const expected = { test: 2432232314, id: "msg_p5jXN8AQM9LWM0D4loKWxJek" };
  const bytes = new TextEncoder().encode(BODY);
  for (const body of [BODY, bytes, bytes.buffer, Buffer.from(BODY)]) {
    for (const headers of [EXAMPLE, new Headers(EXAMPLE), { ...EXAMPLE, "webhook-id": [EXAMPLE["webhook-id"]] }]) {
      assert.deepEqual(await verifyWebhook(body, headers, SECRET, ALWAYS), expected);
    }
  }
  assert.equal((await verifyWebhook('{"type": "é"}', signed('{"type": "é"}'), SECRET)).type, "é");
});

test("each secret and each signature counts while a secret is replaced", async () => {
  const other = "whsec_bmV3IHNlY3JldCBvZiB0aGlydHkgdHdvIGJ5dGVz";
  const both = {
    ...EXAMPLE,
    "webhook-signature": `v2,abc v1,!! v1,${"A".repeat(43)}= ${EXAMPLE["webhook-signature"]}`,
  };
  for (const secret of [`${other},${SECRET}`, [other, SECRET], SECRET]) await verifyWebhook(BODY, both, secret, ALWAYS);
  await assert.rejects(verifyWebhook(BODY, both, other, ALWAYS), WebhookVerificationError);
});

test("anything else is refused", async () => {
  const fresh = signed(BODY);
  for (const [body, headers] of [
    [`${BODY} `, fresh],
    [BODY, { ...fresh, "webhook-id": "msg_2" }],
    [BODY, { ...fresh, "webhook-signature": "v1," }],
    [BODY, { ...fresh, "webhook-signature": undefined }],
    [BODY, { ...fresh, "webhook-timestamp": "soon" }],
    [BODY, signed(BODY, -400)],
    [BODY, signed(BODY, 400)],
    [BODY, EXAMPLE],
    ["{", signed("{")],
  ]) {
    await assert.rejects(verifyWebhook(body, headers, SECRET), WebhookVerificationError);
  }
  await assert.rejects(verifyWebhook(BODY, fresh, "whsec_%"), TypeError);
});

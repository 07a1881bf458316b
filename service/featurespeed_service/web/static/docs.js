// The interactive reference: Swagger UI on the service's own OpenAPI document. Nothing is sent to Swagger's validator.

SwaggerUIBundle({
  url: "openapi.json",
  dom_id: "#swagger-ui",
  deepLinking: true,
  defaultModelsExpandDepth: 0, // a list of schemas that opens
  validatorUrl: null,
});

defmodule Barytherium.TracingCase do
  @moduledoc """
  integrations/opentelemetry, with a recorder in place of the packages that it needs. The test process gets `{:span, span}`
  when a span ends. The modules are global, so such tests are not async.
  """
  use ExUnit.CaseTemplate

  import ExUnit.Assertions

  using do
    quote do
      import Barytherium.TracingCase
      alias Barytherium.{Client, Frame}

      @moduletag capture_log: true
    end
  end

  setup do
    :persistent_term.put(:tracing_test, self())
    adapter = "integrations/opentelemetry/barytherium_opentelemetry.ex"
    made = Code.compile_file("test/fixtures/opentelemetry.exs") ++ Code.compile_file(adapter)
    {module, _binary} = List.last(made)
    module.setup()

    on_exit(fn ->
      Application.delete_env(:barytherium, :publish_headers)

      for {module, _binary} <- made do
        :code.purge(module)
        :code.delete(module)
      end

      for key <- [:tracing_test, :telemetry_handlers], do: :persistent_term.erase(key)
    end)
  end

  @doc "The next span that ends, which has this name."
  def span(name) do
    assert_receive {:span, %{name: ^name} = span}, 10_000
    span
  end
end

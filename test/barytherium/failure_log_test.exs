defmodule Barytherium.FailureLogTest do
  use ExUnit.Case, async: true

  import ExUnit.CaptureLog

  alias Barytherium.Consumer.FailureLog

  # As the handler does.
  defp failure(fun) do
    fun.()
  catch
    kind, reason -> {:exception, kind, reason, __STACKTRACE__}
  end

  defp logged(exception),
    do: capture_log(fn -> FailureLog.log(%{}, My, :handle_message, exception) end)

  test "a message that names functions is whole" do
    assert logged(failure(fn -> apply(String, :nothing, [1]) end)) =~
             "(UndefinedFunctionError) function String.nothing/1 is undefined or private"

    assert logged(failure(fn -> Keyword.fetch!("hunter2", :a) end)) =~
             "(FunctionClauseError) no function clause matching in Keyword.fetch!/2"

    assert logged(failure(fn -> raise "why" end)) =~ "(RuntimeError) why"
  end

  test "bodies are not shown" do
    for fun <- [
          fn -> Keyword.fetch!("hunter2", :a) end,
          fn -> %{} = String.trim("hunter2") end,
          fn -> throw("hunter2") end
        ] do
      log = logged(failure(fun))
      assert log =~ "My: **"
      refute log =~ "hunter2"
    end
  end

  test "a wrong return value is shown, and whose it is" do
    for {value, shown} <- [
          {{:ok, %{api_key: "hunter2"}}, "{:ok, ...}"},
          {{:ok, %Barytherium.Frame{command: :send, body: "hunter2"}},
           "{:ok, %Barytherium.Frame{...}}"},
          {{[:ack, :ack], "hunter2"}, "{[...] (2), ...}"},
          {[1 | 2], "..."},
          {:ok, ":ok"}
        ] do
      log = logged({:exception, :error, {:bad_return_value, value}, []})
      assert log =~ "handle_message/2 returned #{shown}, and not"
      refute log =~ "hunter2"
    end
  end

  test "of failures that are alike ten are logged" do
    exception = failure(fn -> raise "why" end)

    log =
      capture_log(fn ->
        log = Enum.reduce(1..100, %{}, fn _n, log -> FailureLog.log(log, My, :m, exception) end)
        # Another one.
        FailureLog.log(log, My, :m, failure(fn -> raise ArgumentError end))
        # A minute later.
        later = Map.new(log, fn {key, {count, at, left}} -> {key, {count, at - 60_000, left}} end)
        FailureLog.log(later, My, :m, exception)
      end)

    assert length(String.split(log, "(RuntimeError) why")) == 12
    assert log =~ "(ArgumentError)"
    assert log =~ "why (and 90 like this, which were not logged)"
  end
end

defmodule Barytherium.Consumer.FailureLog do
  @moduledoc false
  # What the log says about callbacks that fail. Bodies are not logged, so the message of an exception is shown
  # only if it holds no terms. Of failures that are alike, ten are logged, and then one a minute.

  require Logger

  @most 10
  # Milliseconds.
  @pause 60_000

  # Exceptions whose message names functions only.
  @harmless [FunctionClauseError, UndefinedFunctionError, ArithmeticError]

  @typedoc "How often each failure was met, when it was logged last, and how often it was not since."
  @type t :: %{term() => {pos_integer(), integer(), non_neg_integer()}}

  @doc "Logs a failure of a callback of `module`."
  @spec log(t(), module(), atom(), {:exception, atom(), term(), Exception.stacktrace()}) :: t()
  def log(log, module, callback, {:exception, kind, reason, stacktrace}) do
    reason = normalize(kind, reason, stacktrace)
    key = key(callback, kind, reason, stacktrace)
    {count, at, left_out} = Map.get(log, key, {0, nil, 0})
    now = System.monotonic_time(:millisecond)

    if count < @most or now - at >= @pause do
      text = describe(callback, kind, reason)
      Logger.error("#{inspect(module)}: #{text}#{more(left_out)}#{trace(stacktrace)}")
      Map.put(log, key, {count + 1, now, 0})
    else
      Map.put(log, key, {count, at, left_out + 1})
    end
  end

  defp normalize(:error, {:bad_return_value, _value} = reason, _stacktrace), do: reason
  defp normalize(kind, reason, stacktrace), do: Exception.normalize(kind, reason, stacktrace)

  # Where it was raised, and what.
  defp key(callback, kind, reason, stacktrace) do
    what = if is_exception(reason), do: reason.__struct__, else: kind
    {callback, what, stacktrace |> List.first() |> without_arguments()}
  end

  defp more(0), do: ""
  defp more(count), do: " (and #{count} like this, which were not logged)"

  defp trace([]), do: ""

  defp trace(stacktrace) do
    "\n" <> (stacktrace |> Enum.map(&without_arguments/1) |> Exception.format_stacktrace())
  end

  # The arguments contain the body.
  defp without_arguments({module, function, args, location}) when is_list(args),
    do: {module, function, length(args), location}

  defp without_arguments(entry), do: entry

  defp describe(callback, :error, {:bad_return_value, value}) do
    "#{callback}/2 returned #{shape(value)}, and not what Barytherium.Consumer says: " <>
      "{:ack, state} for example"
  end

  defp describe(_callback, :error, %module{__exception__: true} = exception) do
    if module in @harmless or only_message?(exception),
      do: Exception.format_banner(:error, exception),
      else: "** (#{inspect(module)})"
  end

  defp describe(_callback, kind, reason) when is_atom(reason),
    do: "** (#{kind}) #{inspect(reason)}"

  defp describe(_callback, kind, _reason), do: "** (#{kind})"

  # Only atoms: everything else may be a body, or the user's state.
  defp shape(value) when is_tuple(value),
    do: "{#{value |> Tuple.to_list() |> Enum.map_join(", ", &part/1)}}"

  defp shape(value), do: part(value)

  defp part(value) when is_atom(value), do: inspect(value)
  defp part(%module{}), do: "%#{inspect(module)}{...}"
  defp part(value) when is_list(value) and length(value) >= 0, do: "[...] (#{length(value)})"
  defp part(_value), do: "..."

  defp only_message?(exception),
    do: exception |> Map.keys() |> Enum.sort() == [:__exception__, :__struct__, :message]
end

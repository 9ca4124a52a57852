defmodule Barytherium.Consumer.Callback do
  @moduledoc false
  # Calls the callbacks for messages, and checks what they return.

  alias Barytherium.Client.Outbound
  alias Barytherium.Telemetry

  @type result ::
          {decision :: term(), state :: term()}
          | {:exception, :error | :exit | :throw, term(), Exception.stacktrace()}

  @doc "What the callback has decided, and its state; or what it has raised, a wrong value included."
  @spec call(map(), :handle_message | :handle_batch, term(), term()) :: result()
  def call(%{observed: true} = handler, callback, argument, state) do
    span = Telemetry.span_start(callback, handler, List.wrap(argument))
    result = apply_callback(handler.module, callback, argument, state)
    Telemetry.span_stop(span, result)
    result
  end

  def call(%{module: module}, callback, argument, state),
    do: apply_callback(module, callback, argument, state)

  defp apply_callback(module, callback, argument, state) do
    case apply(module, callback, [argument, state]) do
      {command, _state} = result when command in [:ack, :nack, :noreply] -> result
      other -> checked(other, argument)
    end
  catch
    # What comes from here on is of no use to the user.
    kind, reason ->
      {:exception, kind, reason, Enum.take_while(__STACKTRACE__, &(elem(&1, 0) != __MODULE__))}
  end

  defp checked({:nack, headers, state}, _argument), do: {checked({:nack, headers}), state}

  defp checked({commands, state}, messages) when is_list(commands) and is_list(messages) do
    if length(commands) == length(messages) and :bad not in Enum.map(commands, &checked/1),
      do: {commands, state},
      else: bad_return_value({commands, state})
  end

  defp checked(other, _argument), do: bad_return_value(other)

  defp bad_return_value(value), do: {:exception, :error, {:bad_return_value, value}, []}

  defp checked(command) when command in [:ack, :nack, :noreply], do: command

  defp checked({:nack, headers} = command) do
    Outbound.check_headers!(:nack, headers)
    command
  end

  defp checked(_other), do: :bad
end

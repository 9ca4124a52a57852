defmodule Barytherium.Consumer.Retry do
  @moduledoc false
  # How often a message is given to a callback that raises, and what becomes of it then: the options `:max_attempts`,
  # `:retry_delay` and `:on_exhausted` of a consumer.
  #
  # The attempts are made here, one after the other, because brokers count few deliveries: RabbitMQ those of quorum
  # queues. What it has counted before is added.

  require Logger

  alias Barytherium.{Frame, Telemetry, Text}
  alias Barytherium.Client.Session
  alias Barytherium.Consumer.Decisions

  # `move` is `Barytherium.Consumer.DeadLetters.move/4`.
  @enforce_keys [:max_attempts, :delay, :on_exhausted, :move]
  defstruct [:max_attempts, :delay, :on_exhausted, :move]

  @type t :: %__MODULE__{
          max_attempts: pos_integer(),
          delay: {non_neg_integer(), non_neg_integer()},
          on_exhausted:
            :nack | {:publish, String.t()} | (Frame.t(), term() -> :ack | :nack | :noreply)
        }

  # Milliseconds after which a wait looks whether the consumer is to stop, or the connection has ended.
  @slice 100

  # Headers with the number of deliveries before this one, or with that of this one.
  @before "x-delivery-count"
  @with_this "JMSXDeliveryCount"

  @spec new(map(), function()) :: nil | t()
  def new(%{max_attempts: :infinity}, _move), do: nil

  def new(options, move) do
    %__MODULE__{
      max_attempts: options.max_attempts,
      delay: options.retry_delay,
      on_exhausted: options.on_exhausted,
      move: move
    }
  end

  # Attempts that the broker has counted, and that have come to nothing. Where it does not count, a publisher may have
  # written such a header.
  defp counted(session, message) do
    if Session.rabbitmq?(session),
      do: number(message, @before) || 0,
      else: max((number(message, @with_this) || 1) - 1, 0)
  end

  defp number(message, name) do
    with text when is_binary(text) <- Frame.header(message, name),
         {number, ""} when number >= 0 <- Integer.parse(text),
         do: number,
         else: (_none -> nil)
  end

  @doc "Whether the message may not be tried any more, after so many attempts here."
  @spec exhausted?(t(), Session.t(), Frame.t(), non_neg_integer()) :: boolean()
  def exhausted?(%__MODULE__{max_attempts: most}, session, message, attempts),
    do: counted(session, message) + attempts >= most

  @doc "What a function gets of an exception."
  @spec reason(tuple()) :: term()
  def reason({:exception, :error, reason, stacktrace}),
    do: Exception.normalize(:error, reason, stacktrace)

  def reason({:exception, kind, reason, _stacktrace}), do: {kind, reason}

  @doc "Milliseconds before the next attempt, after so many."
  @spec delay(t(), pos_integer()) :: non_neg_integer()
  def delay(%__MODULE__{delay: {shortest, longest}}, attempts),
    do: min(shortest * 2 ** min(attempts - 1, 30), longest)

  @doc "Waits, unless `stop?` is true meanwhile."
  @spec wait(non_neg_integer(), (() -> boolean())) :: :ok
  def wait(0, _stop?), do: :ok

  def wait(left, stop?) do
    unless stop?.() do
      Process.sleep(min(left, @slice))
      wait(max(left - @slice, 0), stop?)
    end

    :ok
  end

  @doc """
  Decides on a message of which every attempt has failed. `:left`: nothing is decided, because that failed too, or because
  a cumulative acknowledgement would decide on other messages. That is so in STOMP 1.0, except on RabbitMQ.
  """
  @spec give_up(map(), Frame.t(), term()) :: map() | :left
  def give_up(%{retry: %{on_exhausted: what}} = handler, message, reason) do
    if Decisions.mode(handler, message) == :client do
      :left
    else
      Telemetry.exhausted(handler, message)

      case what do
        :nack -> decided(:nack, handler, message)
        {:publish, destination} -> move(Decisions.flush(handler), message, destination)
        function -> decide(handler, message, function, reason)
      end
    end
  end

  defp decided(:nack, handler, message), do: note(handler, {:nack, refusing(handler)}, message)
  defp decided(command, handler, message), do: note(handler, command, message)

  defp note(handler, decision, message),
    do: %{handler | acks: Decisions.note(handler.acks, decision, message, handler)}

  # RabbitMQ would deliver it again.
  defp refusing(%{nack_headers: headers, session: session}) do
    if Session.requeues?(session) and not List.keymember?(headers, "requeue", 0),
      do: [{"requeue", "false"} | headers],
      else: headers
  end

  defp decide(handler, message, function, reason) do
    case function.(message, reason) do
      command when command in [:ack, :nack, :noreply] ->
        decided(command, handler, message)

      _other ->
        not_decided(handler, "has returned something that is not :ack, :nack or :noreply")
    end
  catch
    kind, reason ->
      not_decided(handler, "has failed (#{Text.failure(kind, reason)})")
  end

  defp not_decided(%{module: module}, what) do
    Logger.error("Barytherium: the function on_exhausted of #{inspect(module)} #{what}")
    :left
  end

  # The copy is there when the message is gone, and not before, where the broker can do that.
  defp move(%{client: client, session: session} = handler, message, destination) do
    how =
      cond do
        Decisions.mode(handler, message) == :auto or not handler.live -> :publish
        not Session.acknowledges_in_transactions?(session) -> :publish_first
        true -> :transaction
      end

    acknowledging = if how == :transaction, do: session

    case handler.retry.move.(client, message, destination, acknowledging) do
      :ok when how == :publish_first ->
        note(handler, :ack, message)

      :ok ->
        handler

      {:error, error} ->
        text = Exception.message(error)
        Logger.error("Barytherium: #{inspect(handler.module)} cannot move a message: #{text}")
        :left
    end
  end
end

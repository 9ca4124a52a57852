defmodule BarytheriumOpentelemetry do
  @moduledoc """
  Spans of [OpenTelemetry](https://opentelemetry.io) for what Barytherium publishes and handles, and the context of a trace
  in the headers of messages (`traceparent`), from who publishes to who consumes.

  Copy this file into your project. It needs `opentelemetry_api` and `telemetry`. Call `setup/0` once, before the first
  message:

      def start(_type, _args) do
        BarytheriumOpentelemetry.setup()
        Supervisor.start_link(children(), strategy: :one_for_one)
      end

  | span | kind | parent |
  | --- | --- | --- |
  | `publish DESTINATION` | producer | the current span of the process that publishes |
  | `process DESTINATION` | consumer | the span in the headers of the message |
  | `process DESTINATION`, of a batch | consumer | none; it is linked to the spans in the headers |

  A span is current while the message is published or handled, so that what a callback does is part of its trace. A call that
  publishes many messages is one span, which all of them name.
  """

  @tracer :barytherium
  @publish [:barytherium, :client, :publish]
  # It begins like a message that is published.
  @request [:barytherium, :client, :request]
  @message [:barytherium, :consumer, :message]
  @batch [:barytherium, :consumer, :batch]

  @doc "Attaches to the events, and has `traceparent` added to messages."
  def setup do
    spans =
      for event <- [@message, @batch], part <- [:start, :stop, :exception], do: event ++ [part]

    events = [@publish ++ [:start], @publish, @request] ++ spans
    # It may have been called before.
    :telemetry.detach(__MODULE__)
    :ok = :telemetry.attach_many(__MODULE__, events, &__MODULE__.handle/4, nil)
    Application.put_env(:barytherium, :publish_headers, {__MODULE__, :inject, []})
  end

  @doc false
  def inject, do: :otel_propagator_text_map.inject([])

  @doc false
  def handle([:barytherium, :client, :publish, :start], _measurements, %{messages: messages}, _) do
    name = "publish #{destination(messages)}"
    start(@publish, nil, name, :producer, messages, [])
  end

  def handle(event, _measurements, %{result: result}, _) when event in [@publish, @request] do
    finish(@publish, fn span ->
      with {:error, error} <- result, do: failed(span, Exception.message(error))
    end)
  end

  def handle([:barytherium, :consumer, :message, :start], _measurements, %{headers: headers}, _) do
    name = "process #{destination([headers])}"
    start(@message, extract(headers), name, :consumer, [headers], [])
  end

  def handle([:barytherium, :consumer, :batch, :start], _measurements, %{messages: messages}, _) do
    links =
      for headers <- messages, span = span_of(extract(headers)), do: :opentelemetry.link(span)

    name = "process #{destination(messages)}"

    start(
      @batch,
      :otel_ctx.new(),
      name,
      :consumer,
      messages,
      Enum.reject(links, &(&1 == :undefined))
    )
  end

  def handle([:barytherium, :consumer, _what, :exception] = event, _measurements, metadata, _) do
    finish(Enum.drop(event, -1), fn span ->
      %{kind: kind, reason: reason, stacktrace: stacktrace} = metadata
      :otel_span.record_exception(span, kind, reason, stacktrace, %{})
      # The text of an exception may hold a part of the body.
      failed(span, "the callback raised")
    end)
  end

  def handle([:barytherium, :consumer, _what, :stop] = event, _measurements, %{result: result}, _) do
    finish(Enum.drop(event, -1), fn span ->
      if is_atom(result), do: :otel_span.set_attributes(span, %{"barytherium.result" => result})
    end)
  end

  defp extract(headers), do: :otel_propagator_text_map.extract_to(:otel_ctx.new(), headers)

  defp span_of(context) do
    with :undefined <- :otel_tracer.current_span_ctx(context), do: nil
  end

  defp start(key, parent, name, kind, messages, links) do
    # A process may have been interrupted before the end of the last one.
    finish(key, fn _span -> :ok end)
    parent = parent || :otel_ctx.get_current()

    attributes = %{
      "messaging.system" => "stomp",
      "messaging.destination.name" => destination(messages),
      "messaging.batch.message_count" => length(messages)
    }

    opts = %{kind: kind, attributes: attributes, links: links}
    tracer = :opentelemetry.get_tracer(@tracer)
    span = :otel_tracer.start_span(parent, tracer, name, opts)
    token = :otel_ctx.attach(:otel_tracer.set_current_span(parent, span))
    # A callback may publish.
    Process.put({__MODULE__, key}, {span, token})
  end

  defp finish(key, report) do
    with {span, token} <- Process.delete({__MODULE__, key}) do
      report.(span)
      :otel_span.end_span(span)
      :otel_ctx.detach(token)
    end
  end

  defp failed(span, text),
    do: :otel_span.set_status(span, :opentelemetry.status(:error, text))

  defp destination([headers | _more]) do
    with {_name, destination} <- List.keyfind(headers, "destination", 0, {nil, "unknown"}),
         do: destination
  end
end
